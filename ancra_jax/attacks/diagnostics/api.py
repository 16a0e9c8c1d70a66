"""Diagnostics: does an attack's failure show robustness, or a gradient that leads nowhere?

References:
  Carlini et al., On Evaluating Adversarial Robustness, 2019; Pintor et al., Indicators of Attack
  Failure, NeurIPS 2022.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ancra_jax.attacks.diagnostics.checks import Row, Verdict, rows_of, verdict
from ancra_jax.attacks.diagnostics.measurements import EPSILONS, MEASUREMENTS
from ancra_jax.attacks.diagnostics.state import Measured
from ancra_jax.attacks.job import Job
from ancra_jax.attacks.model import AnyImages, AnyLabels, LogitsFn, as_pytree
from ancra_jax.attacks.placement import Placement, default_batch_size
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.saved_state import fingerprint
from ancra_jax.attacks.threat_models import threat_model
from ancra_jax.attacks.types import Progress, print_progress
from ancra_jax.attacks.validation import check_images, check_labels, check_positive_int


@dataclass(frozen=True)
class Diagnosis:
    """What the diagnostics found.

    Attributes:
      rows: the checks; see ``Row``.
      verdict: ``'masked'`` if a row fired that only a failing attack explains, ``'suspicious'`` if
        another row fired, else ``'trustworthy'``.
      clean_accuracy: share of clean images that are classified correctly.
      epsilons: Linf radii, on the [0, 1] pixel scale.
      accuracies: what 20 steps of APGD leave at each of them.
      correct_at: the same for every example.
      landscape_offsets: offsets along both directions, on the pixel scale.
      landscape_losses: cross-entropy along the gradient's sign (rows) and random signs (columns).
    """

    rows: list[Row]
    verdict: Verdict
    clean_accuracy: float
    epsilons: Float[np.ndarray, "radii"]
    accuracies: Float[np.ndarray, "radii"]
    correct_at: Bool[np.ndarray, "examples radii"]
    landscape_offsets: Float[np.ndarray, "points"]
    landscape_losses: Float[np.ndarray, "shown points points"]

    @property
    def fired(self) -> list[Row]:
        """The rows that fired."""
        return [row for row in self.rows if row.fired]


@explains_old_calls
def diagnose(
    model: LogitsFn,
    images: AnyImages,
    labels: AnyLabels,
    *,
    epsilon: float | int,
    norm: str = "linf",
    results: Mapping[str, Bool[np.ndarray, "examples"]] | None = None,
    key: Key[Array, ""] | None = None,
    indices: AnyLabels | None = None,
    batch_size: int | None = None,
    num_steps: int = 100,
    randomized: bool = False,
    devices: Sequence[jax.Device] | None = None,
    state_path: str | os.PathLike | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
    matmul_precision: str = "highest",
) -> Diagnosis:
    """Looks for the signs that attacks on a model fail for other reasons than its robustness.

    Runs FGSM, PGD, APGD (once, twice as long, and again), targeted APGD, Square, APGD at radii from
    0 to 1, and looks at gradients, at noise and at the loss around a few images. At 200 images of
    32 x 32 and a narrow network this takes minutes on a CPU.

    Args:
      model: see ``attacks.autoattack``. Auxiliary heads, if the model returns any, are attacked
        too, and count as a transfer.
      images: clean images, pixels in [0, 1].
      labels: class numbers.
      epsilon: radius of the threat model, on the [0, 1] pixel scale.
      norm: ``'linf'`` or ``'l2'``.
      results: which examples stayed correct under attacks that were run elsewhere, by name; each
        counts for "robust accuracy above clean accuracy", and 'autoattack' and 'adaptive' are
        compared with each other. Two names stand for parts of such results: 'white-box' says what
        attacks along this model's gradient left, 'transfer' what other attacks left, without
        gradient, through surrogates or from other models; they join the attacks made here. Rows
        that lack what they need have the value None.
      key: source of all randomness; ``jax.random.key(0)`` by default.
      indices: data-set indices of the images, from which an example's randomness is derived.
      batch_size: of the largest batch. As few batches as that allows are made, of one size, a
        multiple of the number of devices. 64 on CPU, else 256.
      num_steps: gradient steps of APGD.
      randomized: the model is called as ``model(images, key=key)``.
      devices: batches are sharded over them; all devices by default.
      state_path: directory for what is measured already: the same call continues there.
      progress: called after every measurement.
      matmul_precision: of matrix products and convolutions.

    Returns:
      Rows, verdict, accuracy over epsilon and the landscape.

    Raises:
      ValueError: bad images, labels or settings, a model whose clean logits are not finite, or a
        saved state of another model or other settings.
    """
    check_images(images)
    check_labels(labels, len(images))
    check_positive_int(num_steps, "num_steps")
    batch_size = default_batch_size() if batch_size is None else batch_size
    check_positive_int(batch_size, "batch_size")
    if len(images) == 0:
        raise ValueError("images is empty: there is nothing to diagnose")
    results = dict(results or {})
    for name, flags in results.items():
        if np.shape(flags) != (len(images),):
            raise ValueError(
                f"results[{name!r}] has shape {np.shape(flags)}: expected [{len(images)}]"
            )
    numbers = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_labels(numbers, len(images), name="indices")
    ball = threat_model(norm, epsilon)
    key = jax.random.key(0) if key is None else key
    devices = jax.devices() if devices is None else devices
    placement = Placement.over(devices, batch_size, len(images))

    with jax.default_matmul_precision(matmul_precision):
        job = Job(
            model=placement.replicate(as_pytree(model)),
            images=np.asarray(images, np.float32),
            labels=np.asarray(labels, np.int32),
            indices=numbers.astype(np.int32),
            threat_model=ball,
            key=key,
            placement=placement,
            randomized=randomized,
            num_steps=num_steps,
        )
        settings = {
            "epsilon": float(epsilon),
            "norm": norm.lower(),
            "num_steps": num_steps,
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "randomized": randomized,
        }
        measured = Measured(
            None if state_path is None else Path(state_path),
            fingerprint(job.images, job.labels, job.indices, settings),
            job.probe(),
        )
        _measure(job, measured, progress)

    rows = rows_of(measured, {name: np.asarray(flags) for name, flags in results.items()})
    return Diagnosis(
        rows=rows,
        verdict=verdict(rows),
        clean_accuracy=float(measured["clean"]["correct"].mean()),
        epsilons=np.asarray(EPSILONS),
        accuracies=measured["curve"]["correct"].mean(axis=0),
        correct_at=measured["curve"]["correct"],
        landscape_offsets=measured["landscape"]["offsets"],
        landscape_losses=measured["landscape"]["losses"],
    )


def _measure(job, measured, progress):
    started = time.monotonic()
    for number, (name, measure) in enumerate(MEASUREMENTS.items(), start=1):
        if name not in measured:
            measured[name] = measure(job, measured)
        if progress is not None:
            left = measured["clean"]["correct"].copy()
            for arrays in measured.values():
                left &= ~arrays.get("broken", np.zeros(len(left), bool))
            progress(
                Progress(
                    attack=f"diagnostics: {name}",
                    round=number,
                    rounds=len(MEASUREMENTS),
                    done=len(left),
                    todo=len(left),
                    robust_accuracy=float(left.mean()),
                    seconds=time.monotonic() - started,
                )
            )
