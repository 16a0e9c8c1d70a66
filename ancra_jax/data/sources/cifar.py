"""CIFAR-10 and CIFAR-100, through TFDS but without TensorFlow; CIFAR-10 also from one JPEG file."""

from pathlib import Path

import numpy as np

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split, check_labels, check_whole_numbers
from ancra_jax.data.decode import decode_images
from ancra_jax.data.registry import SourceOptions, local_path, register
from ancra_jax.data.sources import tfds_directory
from ancra_jax.errors import Problems, UsageError
from ancra_jax.ops.files import PathLike, read_arrays

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip


def inspect_cifar(options: SourceOptions, problems: Problems) -> tuple[int, int] | None:
    """Return the official numbers of images; None for one JPEG file, which has to be there."""
    if options.data_dir and str(options.data_dir).endswith(".npz"):
        path = local_path(options.data_dir)
        if not path.is_file():
            raise UsageError(f"data_dir={path}: there is no such file")
        return None
    if options.data_dir:
        tfds_directory.data_directory(options.data_dir, "the data set or its official archive")
    return 50_000, 10_000


@register("cifar10", inspect=inspect_cifar)
def load_cifar10(options: SourceOptions) -> Dataset:
    """Load CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels, of 10 classes.

    ``data_dir`` is a directory (see `_load`), or an .npz file that holds the images as JPEG: 18 MB,
    small enough to be carried along. Per split it has ``<split>_bytes`` (uint8, all JPEG files end
    to end), ``<split>_lengths`` (of each, in bytes) and ``<split>_labels``.
    """
    if options.data_dir and str(options.data_dir).endswith(".npz"):
        return _load_jpeg_file(local_path(options.data_dir), options.cache_dir)
    return _load("cifar10", 10, options)


@register("cifar100", inspect=inspect_cifar)
def load_cifar100(options: SourceOptions) -> Dataset:
    """Load CIFAR-100, its 100 fine labels; ``data_dir`` is a directory (see `_load`)."""
    return _load("cifar100", 100, options)


def _load(name: str, num_classes: int, options: SourceOptions) -> Dataset:
    """Read a prepared TFDS directory, after preparing it from the official archive if need be.

    ``data_dir`` is a TFDS directory (``data_dir/cifar10/3.0.2``), local or on ``gs://``; None means
    ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``. The archive is looked for in ``data_dir``
    and ``data_dir/downloads/manual`` before it is downloaded.
    """
    contents = f"{name}/<version> as TFDS prepares it, or the official archive"
    data_dir = tfds_directory.data_directory(options.data_dir, contents)
    directory = tfds_directory.find(data_dir, name)
    if directory is None and "://" in str(data_dir):
        raise UsageError(
            f"{data_dir} has no prepared {name}; prepare it in a local data_dir and copy it there"
        )
    if directory is None:
        from ancra_jax.data.sources import prepare_cifar  # Imports TFDS, which takes a second.

        prepare_cifar.prepare(name, data_dir)
        directory = tfds_directory.find(data_dir, name)
    return tfds_directory.load(directory, name, num_classes, options.cache_dir)


def _load_jpeg_file(path: Path, cache_dir: PathLike | None) -> Dataset:
    field = f"data_dir={path}"
    if not path.is_file():
        raise UsageError(f"{field}: there is no such file")

    def build() -> Dataset:
        contents = ("bytes", "lengths", "labels")
        needed = [f"{part}_{array}" for part in ("train", "test") for array in contents]
        arrays = read_arrays(path, needed, field=field)
        train, test = (_jpeg_split(field, arrays, part) for part in ("train", "test"))
        return Dataset("cifar10", train, test, CIFAR10_CLASSES, recoded="JPEG")

    return cached("cifar10", source_key("jpeg file", [path]), build, cache_dir)


def _jpeg_split(field: str, arrays: dict[str, np.ndarray], part: str) -> Split:
    encoded, lengths, labels = (arrays[f"{part}_{one}"] for one in ("bytes", "lengths", "labels"))
    check_whole_numbers(lengths, lengths.size, field, f"{part}_lengths")
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    if encoded.dtype != np.uint8 or encoded.shape != (total,) or min(lengths, default=0) < 1:
        raise UsageError(
            f"{field}: {part}_bytes is {encoded.dtype} of shape {encoded.shape}; must be uint8, "
            f"and {part}_lengths, at least 1 each, add up to {total}"
        )
    check_whole_numbers(labels, len(lengths), field, f"{part}_labels")
    check_labels(labels, len(CIFAR10_CLASSES), field, f"{part} example")
    images, _ = decode_images(
        len(lengths),
        read=lambda i: encoded[ends[i] - lengths[i] : ends[i]].tobytes(),
        describe=lambda i: f"{part} image {i} of {field}",
        largest=32,
    )
    return Split(images, labels.astype(np.int32))
