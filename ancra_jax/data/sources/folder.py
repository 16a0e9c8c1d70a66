"""Any folder of images: ``train/<class>/*`` and ``test/<class>/*``."""

from pathlib import Path

import numpy as np

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.decode import decode_images
from ancra_jax.data.registry import SourceOptions, local_path, register
from ancra_jax.errors import UsageError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@register("folder", resizes=True)
def load_folder(options: SourceOptions) -> Dataset:
    """Load images in one folder per class; the classes are the folders of ``train``, by name.

    Images become grey if all of them are, else RGB without transparency. A split's order takes the
    first image of every class, then the second, so that its first examples are of all classes.
    Files that are no images by their names are left out.
    """
    if not options.data_dir:
        raise UsageError(
            "the data set 'folder' needs a data_dir with train/<class>/* and test/<class>/*"
        )
    root = local_path(options.data_dir)
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise UsageError(
                f"data_dir {root} has no folder {part!r}; it must hold train/<class>/* and "
                "test/<class>/*"
            )
    class_names = tuple(_class_folders(root / "train"))
    train, test = _images(root / "train", class_names), _images(root / "test", class_names)
    paths = [path for path, _ in train + test]
    key = source_key(f"folder, image_size {options.image_size}", paths)

    def build() -> Dataset:
        images, grey = decode_images(
            len(paths),
            read=lambda i: paths[i].read_bytes(),
            describe=lambda i: str(paths[i]),
            image_size=options.image_size,
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


def _class_folders(directory: Path) -> list[str]:
    return sorted(
        path.name for path in directory.iterdir() if path.is_dir() and path.name[0] != "."
    )


def _images(directory: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return paths and labels of a split, classes taking turns."""
    unknown = set(_class_folders(directory)) - set(class_names)
    if unknown:
        raise UsageError(
            f"{directory} has the class {min(unknown)!r}, which is not a folder of train"
        )
    ranked = []
    for label, name in enumerate(class_names):
        paths = [path for path in sorted((directory / name).rglob("*")) if _is_image(path)]
        if not paths and directory.name == "train":
            raise UsageError(f"{directory / name} has no images ({', '.join(sorted(_SUFFIXES))})")
        ranked += [(rank, label, path) for rank, path in enumerate(paths)]
    if not ranked:
        raise UsageError(f"{directory} has no images ({', '.join(sorted(_SUFFIXES))})")
    return [(path, label) for _, label, path in sorted(ranked)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.name[0] != "." and path.is_file()
