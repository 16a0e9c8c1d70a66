"""Tiny-ImageNet: 200 classes, 64x64 pixels, read straight from its zip file or its folder."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from etils import epath

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.decode import decode_images
from ancra_jax.data.registry import SourceOptions, local_path, register
from ancra_jax.data.sources import archives, tfds_directory
from ancra_jax.errors import Problems, UsageError
from ancra_jax.ops.archives import open_zip, read_member
from ancra_jax.ops.archives import read_file as read_bytes
from ancra_jax.ops.files import PathLike

_FOLDER = "tiny-imagenet-200"
_ADVICE = f"download it again from {archives.TINY_IMAGENET.url}"
_TRAIN_IMAGE = re.compile(r"train/(?P<wnid>[^/.][^/]*)/images/[^/.][^/]*\.(?i:jpeg|jpg|png)")

Read = Callable[[str], bytes]  # from the name of a file to its contents


def inspect_tiny_imagenet(options: SourceOptions, problems: Problems) -> tuple[int, int]:
    """Return the official numbers of images, where the data directory is there."""
    if options.data_dir and not local_path(options.data_dir).is_file():
        tfds_directory.data_directory(options.data_dir, f"{_FOLDER}.zip or the folder {_FOLDER}")
    return 100_000, 10_000


@register("tiny_imagenet", inspect=inspect_tiny_imagenet)
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


def _read(source: Path) -> Dataset:
    with _opened(source) as (names, read_file):

        def read(name: str) -> bytes:
            if name not in names:
                raise UsageError(f"{source} has no {name}: it is incomplete or not Tiny-ImageNet")
            try:
                return read_file(name)
            except (OSError, ValueError) as error:
                raise UsageError(f"{source}: {name} is damaged ({error}); {_ADVICE}") from error

        wnids = _lines(read("wnids.txt"))
        matches = filter(None, map(_TRAIN_IMAGE.fullmatch, sorted(names)))
        train = [(match[0], match["wnid"]) for match in matches]
        annotations = _lines(read("val/val_annotations.txt"))
        rows = [line.split("\t") for line in annotations if "\t" in line]
        test = [(f"val/images/{row[0]}", row[1]) for row in rows]
        empty = sorted(set(wnids) - {wnid for _, wnid in train})
        if empty or not test:
            missing = f"training images of class {empty[0]}" if empty else "validation images"
            raise UsageError(f"{source} has no {missing}: it is incomplete")
        words = dict(line.split("\t", 1) for line in _lines(read("words.txt")) if "\t" in line)
        return Dataset(
            name="tiny_imagenet",
            train=_decode(source, read, train, wnids),
            test=_decode(source, read, test, wnids),
            class_names=tuple(words.get(wnid, wnid) for wnid in wnids),
        )


def _lines(text: bytes) -> list[str]:
    return [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]


def _decode(source: Path, read: Read, images: list[tuple[str, str]], wnids: list[str]) -> Split:
    """Return the split of the images with these names and classes."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for name, wnid in images:
        if wnid not in label_of:
            raise UsageError(f"{source}: {name} is of class {wnid}, not in wnids.txt")
    pixels, _ = decode_images(
        len(images),
        read=lambda i: read(images[i][0]),
        describe=lambda i: f"{source}: {images[i][0]}",
        largest=64,
    )
    return Split(pixels, np.array([label_of[wnid] for _, wnid in images], np.int32))


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[set[str], Read]]:
    """Give the names of all files, below the folder of ``wnids.txt``, and a way to read one."""
    if source.is_dir():
        names = {path.relative_to(source).as_posix() for path in source.rglob("*")}
        yield names, lambda name: read_bytes(source / name)
        return
    with open_zip(source, str(source)) as archive:
        members = archive.namelist()
        root = next((name for name in members if name.split("/")[-1] == "wnids.txt"), "")
        root = root.removesuffix("wnids.txt")
        names = {name.removeprefix(root) for name in members}
        yield names, lambda name: read_member(archive, root + name)
