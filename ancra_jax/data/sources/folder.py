"""Any folder of images: ``train/<class>/*`` and ``test/<class>/*``."""

import contextlib
import unicodedata
from pathlib import Path

import numpy as np

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.decode import decode_images, open_image
from ancra_jax.data.registry import SourceOptions, local_path, register
from ancra_jax.errors import Problems, UsageError
from ancra_jax.ops.archives import read_file

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_TWINS = "they differ only in their Unicode normalisation; give both one name"
_LOOKED_AT = 200  # images whose sizes are compared before anything is decoded


def inspect_folder(options: SourceOptions, problems: Problems) -> tuple[int, int]:
    """Return the numbers of images; without ``image_size`` the first must have one size."""
    train, test, _ = _files(options)
    sizes: dict[tuple[int, int], Path] = {}
    for path, _ in train[:_LOOKED_AT] + test[:_LOOKED_AT]:
        with contextlib.suppress(OSError, ValueError), open_image(read_file(path)) as image:
            sizes.setdefault(image.size, path)
    if len(sizes) > 1 and not options.image_size:
        (one, first), (other, second) = list(sizes.items())[:2]
        problems.add(
            f"image_size=0: must be the height and width that all images get: {first} has "
            f"{one[0]}x{one[1]} pixels, {second} has {other[0]}x{other[1]}"
        )
    return len(train), len(test)


@register("folder", resizes=True, inspect=inspect_folder)
def load_folder(options: SourceOptions) -> Dataset:
    """Load images in one folder per class; the classes are the folders of ``train``, by name.

    Images become grey if all of them are, else RGB without transparency. A split's order takes the
    first image of every class, then the second, so that its first examples are of all classes.
    Files that are no images by their names are left out, and so is what is hidden: names that start
    with a dot, and all below folders that have such a name.
    """
    train, test, class_names = _files(options)
    paths = [path for path, _ in train + test]
    key = source_key(f"folder 2, image_size {options.image_size}", paths)

    def build() -> Dataset:
        images, grey = decode_images(
            len(paths),
            read=lambda i: read_file(paths[i]),
            describe=lambda i: str(paths[i]),
            image_size=options.image_size,
            encoded_bytes=sum(path.stat().st_size for path in paths),
        )
        if grey:
            images = images[..., :1]
        labels = np.array([label for _, label in train + test], np.int32)
        return Dataset(
            "folder",
            Split(images[: len(train)], labels[: len(train)]),
            Split(images[len(train) :], labels[len(train) :]),
            class_names,
        )

    return cached("folder", key, build, options.cache_dir)


def _files(
    options: SourceOptions,
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]], tuple[str, ...]]:
    """Return the files of both splits with their labels, and the names of the classes."""
    if not options.data_dir:
        raise UsageError(
            "data_dir='': the data set 'folder' needs one with train/<class>/* and test/<class>/*"
        )
    root = local_path(options.data_dir)
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise UsageError(
                f"data_dir={root}: has no folder {part!r}; it must hold train/<class>/* and "
                "test/<class>/*"
            )
    class_names = tuple(_class_folders(root / "train"))
    return _images(root / "train", class_names), _images(root / "test", class_names), class_names


def _class_folders(directory: Path) -> list[str]:
    names = sorted(
        path.name for path in directory.iterdir() if path.is_dir() and path.name[0] != "."
    )
    forms = [unicodedata.normalize("NFC", name) for name in names]
    for i in range(len(names)):
        if forms[i] in forms[:i]:
            twins = f"{names[forms.index(forms[i])]!a} and {names[i]!a}"
            raise UsageError(f"{directory} has the classes {twins}: {_TWINS}")
    return names


def _images(directory: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return paths and labels of a split, classes taking turns."""
    for name in sorted(set(_class_folders(directory)) - set(class_names)):
        form = unicodedata.normalize("NFC", name)
        twins = [one for one in class_names if unicodedata.normalize("NFC", one) == form]
        hint = f"; train has {twins[0]!a}: {_TWINS}" if twins else ""
        shown = ascii(name) if twins else repr(name)
        raise UsageError(f"{directory} has the class {shown}, which is not a folder of train{hint}")
    ranked = []
    for label, name in enumerate(class_names):
        folder = directory / name
        paths = images_below(folder)
        if not paths and directory.name == "train":
            raise UsageError(f"{folder} has no images ({', '.join(sorted(_SUFFIXES))})")
        ranked += [(rank, label, path) for rank, path in enumerate(paths)]
    if not ranked:
        raise UsageError(f"{directory} has no images ({', '.join(sorted(_SUFFIXES))})")
    return [(path, label) for _, label, path in sorted(ranked)]


def images_below(folder: Path) -> list[Path]:
    """Return the files in a folder that are images by their names and not hidden, sorted."""

    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(folder).parts)

    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES and not is_hidden(path) and path.is_file()
    ]
