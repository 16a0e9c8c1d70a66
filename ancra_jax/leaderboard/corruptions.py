"""CIFAR-10-C and CIFAR-100-C: test images under 15 corruptions at 5 severities.

References:
  Hendrycks & Dietterich, Benchmarking neural network robustness to common corruptions and
  perturbations, ICLR 2019.
"""

import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from ancra_jax.attacks import Linf, Progress, print_progress
from ancra_jax.attacks.arguments import AnyKey
from ancra_jax.attacks.job import Job, checked_outputs
from ancra_jax.attacks.model import Model
from ancra_jax.attacks.saved_state import check_same, read_arrays, write_arrays
from ancra_jax.config import local_path
from ancra_jax.data import check_count
from ancra_jax.data.dataset import check_labels
from ancra_jax.errors import UsageError
from ancra_jax.ops.archives import find_in_tar
from ancra_jax.ops.files import PathLike, map_array

CORRUPTIONS = (
    "shot_noise", "motion_blur", "snow", "pixelate", "gaussian_noise", "defocus_blur", "brightness",
    "fog", "zoom_blur", "frost", "glass_blur", "impulse_noise", "contrast", "jpeg_compression",
    "elastic_transform",
)  # fmt: skip
SEVERITIES = 5
_ARCHIVES = {  # by the data set whose test images are corrupted
    "cifar10": ("CIFAR-10-C", "https://zenodo.org/records/2535967", 10),
    "cifar100": ("CIFAR-100-C", "https://zenodo.org/records/3555552", 100),
}
_STATE = "corruptions.npz"


class Corrupted(NamedTuple):
    """The arrays of an archive, mapped into memory: all images of severity 1, then 2 ..."""

    images: dict[str, UInt8[np.ndarray, "examples height width channels"]]  # by the corruption
    labels: np.ndarray

    def part(
        self, corruption: str, severity: int, examples: int
    ) -> tuple[Float[np.ndarray, "examples height width channels"], np.ndarray]:
        """Return the first images of a severity, in [0, 1], and their labels."""
        start = (severity - 1) * len(self.labels) // SEVERITIES
        rows = slice(start, start + examples)
        pixels = np.divide(self.images[corruption][rows], np.float32(255), dtype=np.float32)
        return pixels, self.labels[rows]


def open_corrupted(dataset: str, directory: PathLike | None) -> Corrupted:
    """Open an archive as it is published, ``CIFAR-10-C.tar``, or unpacked, placed by hand.

    ``directory`` has the file, or the folder of .npy files, or is this folder.

    Raises:
      UsageError: it is not there, incomplete or damaged, or there is none of this data set.
    """
    if dataset not in _ARCHIVES:
        allowed = ", ".join(_ARCHIVES)
        raise UsageError(f"dataset={dataset!r}: corrupted images are there of {allowed}")
    name, address, num_classes = _ARCHIVES[dataset]
    root = Path(local_path(directory or "", "corruptions_dir"))
    files = [f"{one}.npy" for one in (*CORRUPTIONS, "labels")]
    where: dict[str, Any]
    folder = next((one for one in (root, root / name) if (one / files[-1]).is_file()), None)
    tar = root / f"{name}.tar"
    if folder is not None:
        where = {file: (folder / file,) for file in files if (folder / file).is_file()}
    elif tar.is_file():
        where = {file: (tar, *place) for file, place in find_in_tar(tar, files).items()}
    else:
        raise UsageError(
            f"corruptions_dir={root}: put {name}.tar there, from {address}, or the folder {name} "
            "that is in it"
        )
    if missing := [file for file in files if file not in where]:
        raise UsageError(f"{folder or tar} has no {', '.join(missing)}: it is incomplete")
    arrays = {
        file.removesuffix(".npy"): map_array(*place, field=f"{place[0]}, {file}")
        for file, place in where.items()
    }
    labels = arrays.pop("labels")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % SEVERITIES:
        raise UsageError(f"{folder or tar}: labels.npy is {labels.dtype} of shape {labels.shape}")
    check_labels(labels, num_classes, str(folder or tar), "image")
    for one, images in arrays.items():
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise UsageError(
                f"{folder or tar}: {one}.npy is {images.dtype} of shape {images.shape}; must be "
                f"uint8 of shape {(len(labels), 32, 32, 3)}"
            )
    return Corrupted(arrays, labels.astype(np.int32))


def measure(
    model: Model,
    images: Float[np.ndarray, "examples height width channels"],
    labels: Int[np.ndarray, "examples"],
    data: Corrupted,
    state_path: PathLike | None,
    *,
    key: AnyKey | None = None,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
    randomized: bool = False,
    progress: Callable[[Progress], None] | None = print_progress,
    matmul_precision: str = "highest",
) -> tuple[float, Float[np.ndarray, "corruptions severities"]]:
    """Return the accuracy on images, and on as many of every corruption and severity.

    For the arguments, `attacks.autoattack`. With ``state_path`` what was found is kept, and the
    same call continues.
    """
    check_count("n_examples", len(images), len(data.labels) // SEVERITIES)
    store = checked_outputs(state_path, progress, matmul_precision)
    started = time.monotonic()

    def job_of(images: np.ndarray, labels: np.ndarray) -> Job:
        settings = (Linf(1.0), key, devices, batch_size, randomized, 1)  # nothing is attacked
        return Job.create(model, images, labels, None, *settings)

    with jax.default_matmul_precision(matmul_precision):
        clean = job_of(images, labels)
        seen = [zlib.crc32(one[: len(images)].tobytes()) for one in data.images.values()]
        state: dict[str, Any] = {
            "digest": clean.fingerprint(corruptions=seen),
            "probe": clean.probe,
            "accuracies": np.full((len(CORRUPTIONS), SEVERITIES), np.nan),
        }
        if store and (store / _STATE).exists():
            saved = read_arrays(store / _STATE, state)
            digest = saved["digest"].item()
            check_same(store, digest, saved["probe"], [state["digest"]], clean.probe)
            state = saved
        found = state["accuracies"]
        for i, j in np.argwhere(np.isnan(found)).tolist():
            found[i, j] = _accuracy(job_of(*data.part(CORRUPTIONS[i], j + 1, len(images))))
            if store:
                write_arrays(store / _STATE, state)
            if progress is not None:
                event = Progress(
                    attack=f"{CORRUPTIONS[i]} {j + 1}",
                    round=int((~np.isnan(found)).sum()),
                    rounds=found.size,
                    done=len(images),
                    todo=len(images),
                    robust_accuracy=float(np.nanmean(found)),
                    seconds=time.monotonic() - started,
                )
                progress(event)
        return _accuracy(clean), found


def _accuracy(job: Job) -> float:
    """Return the share of a job's natural images that the model classifies correctly."""
    logits = job.logits_of(np.arange(len(job.images)))
    return float((logits.argmax(axis=1) == job.labels).mean())
