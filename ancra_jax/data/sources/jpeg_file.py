"""A data set in one .npz file that holds its images as JPEG: small enough to be carried along.

CIFAR-10 takes 18 MB so. Per split the file has ``<split>_bytes`` (uint8, all JPEG files end to
end), ``<split>_lengths`` (of each, in bytes) and ``<split>_labels``.
"""

from pathlib import Path

import numpy as np

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.decode import decode_images
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import PathLike, read_arrays

SUFFIX = ".npz"
_ARRAYS = [
    f"{part}_{array}" for part in ("train", "test") for array in ("bytes", "lengths", "labels")
]


def load(
    path: Path, name: str, class_names: tuple[str, ...], cache_dir: PathLike | None
) -> Dataset:
    """Read and decode such a file, or take its decoded form from the cache."""
    field = f"data_dir {path}"
    if not path.is_file():
        raise UsageError(f"{field}: there is no such file")

    def build() -> Dataset:
        arrays = read_arrays(path, _ARRAYS, field=field)
        train, test = (_split(field, arrays, part) for part in ("train", "test"))
        return Dataset(name, train, test, class_names, recoded="JPEG")

    return cached(name, source_key("jpeg file", [path]), build, cache_dir)


def _split(field: str, arrays: dict[str, np.ndarray], part: str) -> Split:
    encoded, lengths, labels = (
        arrays[f"{part}_{array}"] for array in ("bytes", "lengths", "labels")
    )
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if encoded.shape != (total,) or not total:
        raise UsageError(
            f"{field}: {part}_bytes has the shape {encoded.shape}, but {part}_lengths add up to "
            f"{total}"
        )
    images, _ = decode_images(
        len(lengths),
        read=lambda i: encoded[ends[i] - lengths[i] : ends[i]].tobytes(),
        describe=lambda i: f"{part} image {i} of {field}",
    )
    return Split(images, labels.astype(np.int32))
