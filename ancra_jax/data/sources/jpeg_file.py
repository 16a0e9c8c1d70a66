"""A data set in one .npz file that holds its images as JPEG: small enough to be carried along.

CIFAR-10 takes 18 MB so. Per split the file has ``<split>_bytes`` (uint8, all JPEG files end to
end), ``<split>_lengths`` (of each, in bytes) and ``<split>_labels``.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.decode import decode_images
from ancra_jax.data.registry import PathLike
from ancra_jax.errors import UsageError

SUFFIX = ".npz"


def load(
    path: Path, name: str, class_names: tuple[str, ...], cache_dir: PathLike | None
) -> Dataset:
    """Reads and decodes such a file, or takes its decoded form from the cache.

    Args:
      path: of the file.
      name: of the data set.
      class_names: in the order of the labels.
      cache_dir: see `ancra_jax.data.load`.

    Raises:
      UsageError: the file is missing, damaged or another one.
    """
    if not path.is_file():
        raise UsageError(f"data_dir {path}: there is no such file")

    def build() -> Dataset:
        try:
            with np.load(path, allow_pickle=False) as file:
                train, test = (_split(path, file, part) for part in ("train", "test"))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"data_dir {path} is not a file of JPEG images or is damaged: {error}"
            ) from error
        return Dataset(name, train, test, class_names, recoded="JPEG")

    return cached(name, source_key("jpeg file", [path]), build, cache_dir)


def _split(path: Path, file: np.lib.npyio.NpzFile, part: str) -> Split:
    encoded, lengths = file[f"{part}_bytes"], file[f"{part}_lengths"]
    labels = file[f"{part}_labels"]
    ends = np.cumsum(lengths, dtype=np.int64)
    if encoded.ndim != 1 or not len(ends) or ends[-1] != len(encoded):
        raise UsageError(
            f"data_dir {path}: {part}_bytes has the shape {encoded.shape}, but {part}_lengths "
            f"add up to {int(ends[-1]) if len(ends) else 0}"
        )
    images, _ = decode_images(
        len(lengths),
        read=lambda i: encoded[ends[i] - lengths[i] : ends[i]].tobytes(),
        describe=lambda i: f"{part} image {i} of {path}",
    )
    return Split(images, labels.astype(np.int32))
