"""Any folder of images: ``train/<class>/*`` and ``test/<class>/*``, or ``<class>/*``."""

import statistics
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.decode import decode_images, measure, shortened
from ancra_jax.data.registry import Contents, SourceOptions, local_path, register
from ancra_jax.errors import Problems, UsageError
from ancra_jax.ops.archives import read_file

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_TRAIN = ("train", "training")  # names of a split's folder, in any case, the first preferred
_TEST = ("test", "testing", "val", "valid", "validation")
_EXPECTED = "it must hold <class>/*, or train/<class>/* and test/<class>/*"
_TWINS = "they differ only in their Unicode normalisation; give both one name"
_TEST_EVERY = 5  # images of a class, where there is no test split
_LOOKED_AT = 500  # images of a split that are looked at before anything is decoded
_LARGEST = 96  # pixels a side of images whose size is kept if they all have it
_SMALL, _MEDIUM = 32, 64  # pixels a side otherwise; the second if most images have as many ...
_MANY = 2000  # ... and there are so many training images, since it takes four times as long

Examples = list[tuple[Path, int]]
"""Files with their labels."""


class _Folder(NamedTuple):
    """What a folder was found to hold."""

    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    note: str


def inspect_folder(options: SourceOptions, problems: Problems) -> Contents:
    """Return the numbers of images, and the size that they need; all that is wrong is reported."""
    found = _find(options)
    sizes, damaged = [], []
    for path, _ in found.train[:_LOOKED_AT] + found.test[:_LOOKED_AT]:
        try:
            sizes.append(measure(path))
        except UsageError as error:
            damaged.append(str(error))
    for message in shortened(damaged):
        problems.add(message)
    kept = len(set(sizes)) < 2 and max(map(max, sizes), default=0) <= _LARGEST
    size = 0
    if not options.image_size and not kept:
        median = statistics.median(map(min, sizes)) if sizes else 0
        size = _MEDIUM if median >= _MEDIUM and len(found.train) >= _MANY else _SMALL
    return Contents(len(found.train), len(found.test), size, found.note)


@register("folder", resizes=True, inspect=inspect_folder)
def load_folder(options: SourceOptions) -> Dataset:
    """Load images in one folder per class; the classes are the folders of ``train``, by name.

    The test split is ``test`` or ``val``; without these, every fifth image of each class, in the
    order of their names. Images become grey if all of them are, else RGB without transparency. A
    split's order takes the first image of every class, then the second, so that its first examples
    are of all classes. Files that are no images by their names are left out, and so is what is
    hidden: names that start with a dot, and all below folders that have such a name.
    """
    train, test, class_names, _ = _find(options)
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


def _find(options: SourceOptions) -> _Folder:
    """Return the files of both splits; raise a UsageError with all that is wrong with the names."""
    if not options.data_dir:
        raise UsageError(f"data_dir='': the data set 'folder' needs one; {_EXPECTED}")
    root = local_path(options.data_dir)
    if not root.is_dir():
        state = "is a file; unpack it" if root.exists() else "there is no such folder"
        raise UsageError(f"data_dir={root}: {state}; {_EXPECTED}")
    train_folder, test_folder = _splits(root)
    problems = Problems()
    class_names = _class_names(train_folder, root, problems)
    by_class = [images_below(train_folder / name) for name in class_names]
    for name, paths in zip(class_names, by_class, strict=True):
        if not paths:
            problems.add(f"{train_folder / name} has no images ({', '.join(sorted(_SUFFIXES))})")
    note = ""
    if test_folder is not None:
        _check_classes(test_folder, class_names, problems)
        held_out = [images_below(test_folder / name) for name in class_names]
        missing = f"{test_folder} has no images ({', '.join(sorted(_SUFFIXES))})"
    else:
        held_out = [paths[_TEST_EVERY - 1 :: _TEST_EVERY] for paths in by_class]
        for paths in by_class:
            del paths[_TEST_EVERY - 1 :: _TEST_EVERY]
        note = f"{root} has no test folder: every {_TEST_EVERY}th image of a class is a test image"
        missing = (
            f"{train_folder} has no class of {_TEST_EVERY} images, and there is no test folder"
        )
    if not any(held_out) and class_names:
        problems.add(missing)
    problems.raise_all()
    return _Folder(in_turns(by_class), in_turns(held_out), class_names, note)


def _splits(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training and of the test split, None if that has none."""
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    train, test = (
        next((folders[name] for name in names if name in folders), None)
        for names in (_TRAIN, _TEST)
    )
    if train is None and test is not None:
        raise UsageError(f"data_dir={root}: has a folder {test.name!r} but none called 'train'")
    return train or root, test


def _class_names(directory: Path, root: Path, problems: Problems) -> tuple[str, ...]:
    """Return the names of the classes, the folders of a split, of which there must be two."""
    names = _folders(directory)
    forms = [unicodedata.normalize("NFC", name) for name in names]
    for i in range(len(names)):
        if forms[i] in forms[:i]:
            twins = f"{names[forms.index(forms[i])]!a} and {names[i]!a}"
            problems.add(f"{directory} has the classes {twins}: {_TWINS}")
    if len(names) < 2:
        found = f"has {'one folder' if names else 'no folders'} of images"
        inner = directory / names[0] if names else directory
        if names and len(_folders(inner)) > 1:
            found += f"; did you mean data_dir={inner}?"
        else:
            found += "; at least two classes are needed, a folder each"
        where = "" if directory == root else f"{directory.name} "
        problems.add(f"data_dir={root}: {where}{found}; {_EXPECTED}")
    return tuple(names)


def _check_classes(directory: Path, class_names: tuple[str, ...], problems: Problems) -> None:
    """Report the classes of the test split that the training split does not have."""
    for name in sorted(set(_folders(directory)) - set(class_names)):
        form = unicodedata.normalize("NFC", name)
        twins = [one for one in class_names if unicodedata.normalize("NFC", one) == form]
        hint = f"; train has {twins[0]!a}: {_TWINS}" if twins else ""
        shown = ascii(name) if twins else repr(name)
        problems.add(f"{directory} has the class {shown}, which is not a folder of train{hint}")


def _folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir() and _seen(path.name))


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and below, without hidden ones, in the order of their names."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and all(map(_seen, path.relative_to(folder).parts))
        and path.is_file()
    ]


def _seen(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def in_turns(by_class: list[list[Path]]) -> Examples:
    """Return paths and labels of a split, classes taking turns."""
    ranked = [
        (rank, label, path)
        for label, paths in enumerate(by_class)
        for rank, path in enumerate(paths)
    ]
    return [(path, label) for _, label, path in sorted(ranked)]
