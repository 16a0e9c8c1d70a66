"""CIFAR-10 and CIFAR-100, through TFDS but without TensorFlow."""

from ancra_jax.data.dataset import Dataset
from ancra_jax.data.registry import SourceOptions, local_path, register
from ancra_jax.data.sources import jpeg_file, tfds_directory
from ancra_jax.errors import UsageError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip


@register("cifar10")
def load_cifar10(options: SourceOptions) -> Dataset:
    """Load CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels, of 10 classes.

    ``data_dir`` may be a file of JPEG images (see `jpeg_file`), or a directory (see `_load`).
    """
    if options.data_dir and str(options.data_dir).endswith(jpeg_file.SUFFIX):
        path = local_path(options.data_dir)
        return jpeg_file.load(path, "cifar10", CIFAR10_CLASSES, options.cache_dir)
    return _load("cifar10", 10, options)


@register("cifar100")
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
