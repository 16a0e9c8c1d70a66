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

from ancra_jax.attacks.diagnostics.checks import Check, Verdict, checks_of, verdict
from ancra_jax.attacks.diagnostics.measurements import EPSILONS, MEASUREMENTS, left_by
from ancra_jax.attacks.job import Arrays, Job, Progress, print_progress
from ancra_jax.attacks.model import Model
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.saved_state import check_same, read_arrays, write_arrays
from ancra_jax.attacks.threat_models import threat_model
from ancra_jax.ops.images import AnyImages, AnyLabels


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the diagnostics found.

    Attributes:
      checks: all checks, in the order in which a reader should look at them.
      verdict: ``'masked'`` if a check fired that only a failing attack explains, ``'suspicious'``
        if another one fired, else ``'trustworthy'``.
      clean_accuracy: share of natural images that are classified correctly.
      epsilons: Linf radii, on the [0, 1] pixel scale.
      accuracies: what 20 steps of APGD leave at each of them.
      correct_at: the same for every example.
      landscape_offsets: offsets along both directions, on the [0, 1] pixel scale.
      landscape_losses: cross-entropy along the gradient's sign and, last axis, random signs.
    """

    checks: list[Check]
    verdict: Verdict
    clean_accuracy: float
    epsilons: Float[np.ndarray, "radii"]
    accuracies: Float[np.ndarray, "radii"]
    correct_at: Bool[np.ndarray, "examples radii"]
    landscape_offsets: Float[np.ndarray, "points"]
    landscape_losses: Float[np.ndarray, "shown points points"]

    @property
    def fired(self) -> list[Check]:
        """The checks that fired."""
        return [check for check in self.checks if check.fired]

    @property
    def rows(self) -> list[Check]:
        """The checks, by the name that they had in version 0.1."""
        return self.checks

    def __repr__(self) -> str:
        examples = f"{len(self.correct_at)} examples, {self.clean_accuracy:.2%} natural accuracy"
        lines = [f"Diagnosis({self.verdict}: {examples}"]
        lines += [
            f"  {check.severity}: {check.name}, {check.value:.4g} > {check.threshold:.4g}"
            for check in self.fired
        ]
        return "\n".join(lines) + ")"


@explains_old_calls
def diagnose(
    model: Model,
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
    """Look for the signs that attacks on a model fail for other reasons than its robustness.

    Runs FGSM, PGD, APGD (once, twice as long, and again), targeted APGD, Square, APGD at radii from
    0 to 1, and looks at gradients, at noise and at the loss around a few images. Auxiliary heads,
    if the model returns any, are attacked too, and count as a transfer. At 200 images of 32 x 32
    and a narrow network this takes minutes on a CPU.

    Args:
      model, images, labels, epsilon, norm, key, indices, batch_size, randomized, devices,
        matmul_precision: as in ``autoattack``.
      results: which examples stayed correct under attacks that were run elsewhere, by name; each
        counts for "robust accuracy above clean accuracy", and 'autoattack' and 'adaptive' are
        compared with each other. Two names stand for parts of such results: 'white-box' says what
        attacks along this model's gradient left, 'transfer' what other attacks left, without
        gradient, through surrogates or from other models; they join the attacks made here. Checks
        that lack what they need have the value None.
      num_steps: gradient steps of APGD.
      state_path: directory for what is measured already: the same call continues there.
      progress: called after every measurement.

    Returns:
      Checks, verdict, accuracy over epsilon and the landscape.

    Raises:
      ValueError: bad images, labels or settings, a model whose natural logits are not finite, or a
        saved state of another model or other settings.
    """
    results = {name: np.asarray(flags) for name, flags in (results or {}).items()}
    for name, flags in results.items():
        if flags.shape != (len(images),):
            raise ValueError(f"results[{name!r}] has shape {flags.shape}: expected [{len(images)}]")
    ball = threat_model(norm, epsilon)
    with jax.default_matmul_precision(matmul_precision):
        job = Job.create(
            model, images, labels, indices, ball, key, devices, batch_size, randomized, num_steps
        )
        measured = _measure(job, None if state_path is None else Path(state_path), progress)
    checks = checks_of(measured, results)
    return Diagnosis(
        checks=checks,
        verdict=verdict(checks),
        clean_accuracy=float(measured["clean"]["correct"].mean()),
        epsilons=np.asarray(EPSILONS),
        accuracies=measured["curve"]["correct"].mean(axis=0),
        correct_at=measured["curve"]["correct"],
        landscape_offsets=measured["landscape"]["offsets"],
        landscape_losses=measured["landscape"]["losses"],
    )


def _measure(
    job: Job, directory: Path | None, progress: Callable[[Progress], None] | None
) -> dict[str, Arrays]:
    """Make the measurements that ``directory`` does not hold, and write each as a file there."""
    started = time.monotonic()
    measured = {} if directory is None else _saved_measurements(job, directory)
    for number, (name, measure) in enumerate(MEASUREMENTS.items(), start=1):
        if name not in measured:
            arrays = measured[name] = measure(job, measured)
            if directory is not None:
                write_arrays(directory / f"{name}.npz", arrays)
        if progress is not None:
            left = left_by(measured, *(key for key in measured if "broken" in measured[key]))
            event = Progress(
                attack=f"diagnostics: {name}",
                round=number,
                rounds=len(MEASUREMENTS),
                done=len(job.images),
                todo=len(job.images),
                robust_accuracy=len(left) / len(job.images),
                seconds=time.monotonic() - started,
            )
            progress(event)
    return measured


def _saved_measurements(job: Job, directory: Path) -> dict[str, Arrays]:
    """Read what the directory holds, or note there whose measurements it will hold."""
    digest = job.fingerprint(num_steps=job.num_steps)
    files = {path.stem: read_arrays(path) for path in sorted(directory.glob("*.npz"))}
    identity = files.pop("identity", None)
    if identity is None:
        write_arrays(directory / "identity.npz", {"fingerprint": digest, "probe": job.probe})
        return {}
    check_same(directory, str(identity["fingerprint"]), identity["probe"], digest, job.probe)
    return files
