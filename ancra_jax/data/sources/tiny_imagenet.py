"""Tiny-ImageNet: 200 classes, 64x64 pixels, read straight from its zip file or its folder."""

import contextlib
import dataclasses
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from etils import epath

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.decode import decode_images
from ancra_jax.data.registry import SourceOptions, local_path, register
from ancra_jax.data.sources import archives, tfds_directory
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import PathLike

_FOLDER = "tiny-imagenet-200"
_TRAIN_IMAGE = re.compile(r"train/(?P<wnid>[^/]+)/images/[^/]+\.(?i:jpeg|jpg|png)")


@register("tiny_imagenet")
def load_tiny_imagenet(options: SourceOptions) -> Dataset:
    """Load Tiny-ImageNet; its validation set, which has labels, is the test split.

    ``data_dir`` is the official ``tiny-imagenet-200.zip``, a folder with it, or the folder it was
    extracted to. Otherwise it is a TFDS directory (None: ``$TFDS_DATA_DIR``, else
    ``~/tensorflow_datasets``) to which the zip file is downloaded. Labels follow ``wnids.txt``.
    """
    source = _find(options.data_dir)
    paths = [source]
    if source.is_dir():
        paths = [path for path in source.rglob("*") if path.is_file()]
    key = source_key("tiny_imagenet", paths)
    return cached("tiny_imagenet", key, lambda: _read(source), options.cache_dir)


def _find(data_dir: PathLike | None) -> Path:
    if data_dir:
        given = local_path(data_dir)
        if given.is_file():
            return given
        if given.is_dir() and not archives.placed(archives.TINY_IMAGENET, epath.Path(given)):
            for folder in (given, given / _FOLDER):
                if (folder / "wnids.txt").exists():
                    return folder
    directory = tfds_directory.data_directory(data_dir, f"{_FOLDER}.zip or the folder {_FOLDER}")
    return Path(archives.obtain(archives.TINY_IMAGENET, "tiny_imagenet", directory))


@dataclasses.dataclass(frozen=True)
class _Tree:
    """The files of the zip file or folder, by their paths below the folder of ``wnids.txt``."""

    source: Path
    names: frozenset[str]
    read: Callable[[str], bytes]

    def lines(self, name: str) -> list[str]:
        """Return the lines of a text file that are not empty."""
        if name not in self.names:
            raise UsageError(f"{self.source} has no {name}: it is incomplete or not Tiny-ImageNet")
        text = self.read(name).decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()]


def _read(source: Path) -> Dataset:
    with _opened(source) as tree:
        wnids = tree.lines("wnids.txt")
        matches = [match for name in sorted(tree.names) if (match := _TRAIN_IMAGE.fullmatch(name))]
        train = [(match[0], match["wnid"]) for match in matches]
        rows = [line.split("\t") for line in tree.lines("val/val_annotations.txt") if "\t" in line]
        test = [(f"val/images/{row[0]}", row[1]) for row in rows]
        empty = sorted(set(wnids) - {wnid for _, wnid in train})
        if empty or not test:
            missing = f"training images of class {empty[0]}" if empty else "validation images"
            raise UsageError(f"{source} has no {missing}: it is incomplete")
        words = dict(line.split("\t", 1) for line in tree.lines("words.txt") if "\t" in line)
        return Dataset(
            name="tiny_imagenet",
            train=_decode(tree, train, wnids),
            test=_decode(tree, test, wnids),
            class_names=tuple(words.get(wnid, wnid) for wnid in wnids),
        )


def _decode(tree: _Tree, images: list[tuple[str, str]], wnids: list[str]) -> Split:
    """Return the split of the images with these names and classes."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for name, wnid in images:
        if wnid not in label_of:
            raise UsageError(f"{tree.source}: {name} is of class {wnid}, not in wnids.txt")
        if name not in tree.names:
            raise UsageError(f"{tree.source} has no {name}: it is incomplete")
    pixels, _ = decode_images(
        len(images),
        read=lambda i: tree.read(images[i][0]),
        describe=lambda i: f"{tree.source}: {images[i][0]}",
    )
    return Split(pixels, np.array([label_of[wnid] for _, wnid in images], np.int32))


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[_Tree]:
    if source.is_dir():
        names = frozenset(path.relative_to(source).as_posix() for path in source.rglob("*"))
        yield _Tree(source, names, lambda name: (source / name).read_bytes())
        return
    advice = f"download it again from {archives.TINY_IMAGENET.url}"
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"{source} is not a whole zip file ({error}); {advice}") from error
    with archive:
        members = archive.namelist()
        root = next((name for name in members if name.split("/")[-1] == "wnids.txt"), "")
        root = root.removesuffix("wnids.txt")

        def read(name: str) -> bytes:
            try:
                return archive.read(root + name)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                raise UsageError(f"{source}: {name} is damaged ({error}); {advice}") from error

        yield _Tree(source, frozenset(name.removeprefix(root) for name in members), read)
