"""Diagnostics: does an attack's failure show robustness, or a gradient that leads nowhere?

Shares are of all examples. If one attack breaks an example that a better one does not, that can be
chance: such checks fire only for more than one example, and for more than 0.2 % of them. FGSM and
PGD each break some examples that the other leaves, on any network: there the difference must also
exceed twice its standard deviation.

References:
  Carlini et al., On Evaluating Adversarial Robustness, 2019; Pintor et al., Indicators of Attack
  Failure, NeurIPS 2022.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Bool, Float

from ancra_jax.attacks.arguments import AnyKey, Number, as_flags, as_floats, shown
from ancra_jax.attacks.diagnostics.measurements import EPSILONS, MEASUREMENTS, left_by
from ancra_jax.attacks.job import (
    Arrays,
    Job,
    Known,
    Progress,
    checked_outputs,
    print_progress,
)
from ancra_jax.attacks.model import Model
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.saved_state import check_same, read_arrays, write_arrays
from ancra_jax.attacks.threat_models import ThreatModel, ball_of
from ancra_jax.ops.files import AnyPath
from ancra_jax.ops.images import AnyImages, AnyLabels

Flags = Bool[np.ndarray, "examples"]
Severity = Literal["masked", "suspicious"]
Verdict = Literal["trustworthy", "suspicious", "masked"]

AUTOATTACK, ADAPTIVE, WHITE_BOX, TRANSFER = "autoattack", "adaptive", "white-box", "transfer"
PARTS = (WHITE_BOX, TRANSFER)  # names in ``results`` that are no attack's accuracy
SHARE = 0.002


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str  # what is looked for
    value: float | None  # what was found; None if it could not be looked for
    threshold: float  # the largest value that passes
    fired: bool | None  # whether the value is above it; None if there is no value
    severity: Severity  # the verdict that the check asks for when it fires
    meaning: str  # what it means when it fires, in a sentence


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
    threat_model: ThreatModel | None = None,
    *,
    epsilon: Number | None = None,
    norm: str | Number = "linf",
    results: Mapping[str, Bool[np.ndarray, "examples"]] | None = None,
    key: AnyKey | None = None,
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
    and a narrow network this takes minutes on a CPU. Arguments not named here are as in
    `autoattack`.

    Args:
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
    if not isinstance(results, Mapping | None):
        raise TypeError(f"results={shown(results)}: expected flags by name")
    count = len(as_floats(images, "images"))
    results = {
        name: np.asarray(as_flags(flags, count, f"results[{name!r}]"))
        for name, flags in (results or {}).items()
    }
    directory = checked_outputs(state_path, progress, matmul_precision)
    ball = ball_of(threat_model, norm, epsilon)
    with jax.default_matmul_precision(matmul_precision):
        job = Job.create(
            model, images, labels, indices, ball, key, devices, batch_size, randomized, num_steps
        )
        if not job.placement.share.is_first:  # the first process has the files
            directory = None
        measured = _measure(job, directory, progress)
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
    job: Job, directory: AnyPath | None, progress: Callable[[Progress], None] | None
) -> dict[str, Arrays]:
    """Make the measurements that ``directory`` does not hold, and write each as a file there."""
    started = time.monotonic()
    measured = job.placement.share.from_first(
        lambda: {} if directory is None else _saved_measurements(job, directory)
    )
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


def _saved_measurements(job: Job, directory: AnyPath) -> dict[str, Arrays]:
    """Read what the directory holds, or note there whose measurements it will hold."""
    digest = job.fingerprint(num_steps=job.num_steps)
    files = {path.stem: read_arrays(path) for path in directory.glob("*.npz")}
    identity = files.pop("identity", None)
    if identity is None:
        write_arrays(directory / "identity.npz", {"fingerprint": digest, "probe": job.probe})
        return {}
    check_same(directory, str(identity["fingerprint"]), identity["probe"], [digest], job.probe)
    return files


def verdict(checks: list[Check]) -> Verdict:
    """Return the gravest severity of the checks that fired, ``'trustworthy'`` if none did."""
    fired = {check.severity for check in checks if check.fired}
    return "masked" if "masked" in fired else "suspicious" if fired else "trustworthy"


def noticed_share(num_examples: int) -> float:
    """Return the smallest share of examples for which a check fires in 19 of 20 sets of this size.

    This concerns checks that look for a share of examples. Where it is large, there are too few
    examples for a verdict 'trustworthy' to mean much.
    """
    from scipy.stats import binomtest  # half a second, and only reports need it

    passing = max(1, math.floor(SHARE * num_examples + 1e-9))  # so many do not fire
    return float(binomtest(passing, num_examples).proportion_ci(0.9).high)


def checks_of(measured: Known, results: Mapping[str, Flags]) -> list[Check]:
    """Return all checks, in the order in which a reader should look at them.

    ``results`` says which examples stayed correct under attacks that were run elsewhere.
    """
    natural, fgsm, pgd, apgd = (measured[name] for name in ("clean", "fgsm", "pgd", "apgd"))
    correct = natural["correct"]
    several = max(SHARE, 1 / len(correct))  # the share that has to be exceeded
    elsewhere = [flags for name, flags in results.items() if name not in PARTS]
    above = max(map(_share, [fgsm["correct"], pgd["correct"], *elsewhere])) - _share(correct)
    one_step = correct & ~fgsm["correct"] & pgd["correct"]  # what it alone breaks
    many_steps = correct & fgsm["correct"] & ~pgd["correct"]
    chance = 2 * float(np.sqrt(np.sum(one_step | many_steps))) / len(correct)  # two deviations
    curve = measured["curve"]["correct"].mean(axis=0)
    more = measured["longer"]["broken"] | measured["restarted"]["broken"]
    lost = (pgd["met"] & pgd["correct"]) | (apgd["claimed"] & ~apgd["broken"])
    changes = measured["noise"]["change"][correct]
    indirect = _indirect_gain(measured, results, correct & ~apgd["broken"] & ~more)
    adaptive = None
    if AUTOATTACK in results and ADAPTIVE in results:
        adaptive = _share(correct & results[AUTOATTACK] & ~results[ADAPTIVE])

    # Name: value (None where it cannot be told), and the largest that passes.
    found: dict[str, tuple[float | None, float]] = {
        "robust accuracy above clean accuracy": (above, 0.0),
        "one step beats many": (_share(one_step) - _share(many_steps), max(several, chance)),
        "robust accuracy rises with epsilon": (float(np.diff(curve).max()), several),
        "accuracy above chance at Linf 0.5": (float(curve[-2]) - 1 / int(natural["classes"][0]), 0),
        "accuracy under an unbounded attack": (float(curve[-1]), several),
        "zero input gradient": (_share(measured["gradient"]["zero"]), 0.0),
        "gradient-free or transfer beats white-box": (indirect, several),
        "adaptive attack beats AutoAttack": (adaptive, several),
        "more effort breaks more": (_share(correct & ~apgd["broken"] & more), several),
        "loss still rises at the end": (_late_rise(pgd["loss"][correct]), 0.05),
        "noisy landscape": (float(changes.mean()) if len(changes) else None, 0.1),
        "adversarial iterate lost": (_share(correct & lost), several),
        "outputs differ between calls": (float(natural["difference"][0]), 1e-4),
    }
    checks = []
    for severity, meanings in _MEANINGS.items():
        for name, meaning in meanings.items():
            value, threshold = found[name]
            fired = None if value is None else bool(value > threshold + 1e-9)
            checks.append(Check(name, value, float(threshold), fired, severity, meaning))
    return checks


_MEANINGS: dict[Severity, dict[str, str]] = {
    "masked": {
        "robust accuracy above clean accuracy": (
            "an attack that works cannot raise the accuracy, so its gradient leads the wrong way: "
            "do not quote this accuracy, attack a surrogate that has a gradient"
        ),
        "one step beats many": (
            "a single step breaks more examples than 40 steps do, so the loss between is not what "
            "its gradient says: count the worst of several attacks"
        ),
        "robust accuracy rises with epsilon": (
            "a larger ball holds the smaller one, so it is the attack that fails: quote no radius "
            "before a stronger attack makes the curve fall"
        ),
        "accuracy above chance at Linf 0.5": (
            "within 0.5 every image can be made grey, so what is still right was not attacked: "
            "find out what stops the gradient"
        ),
        "accuracy under an unbounded attack": (
            "an attack that may show any image at all must break every example: find out what "
            "stops the gradient"
        ),
        "zero input gradient": (
            "where the gradient is exactly 0 gradient attacks are blind (saturated logits, "
            "quantisation): use a surrogate, or a loss that is not saturated"
        ),
        "gradient-free or transfer beats white-box": (
            "attacks that do not follow this gradient break what attacks that follow it leave, so "
            "the gradient is masked: attack what decides the output through a surrogate"
        ),
        "adaptive attack beats AutoAttack": (
            "attacks made for this defence lower the robust accuracy that AutoAttack reports: "
            "quote the adaptive worst case"
        ),
    },
    "suspicious": {
        "more effort breaks more": (
            "twice the iterations or a second start still help: attack longer before quoting a "
            "number"
        ),
        "loss still rises at the end": (
            "the last 10 of 40 steps bring more than 5 % of all that the loss gained (or it gained "
            "nothing), so the attack has not converged: give it more steps or larger ones"
        ),
        "noisy landscape": (
            "random noise within 4/255 changes the margin by more than 10 %, so single gradients "
            "say little: average them over noise or draws (EOT)"
        ),
        "adversarial iterate lost": (
            "an attack met a misclassified image and returned one that is not (its last iterate, "
            "or a fresh forward pass denies it): keep the worst iterate, average over draws"
        ),
        "outputs differ between calls": (
            "the model is randomised: pass its randomness as a key and use AutoAttack's version "
            "'rand'"
        ),
    },
}


def _indirect_gain(measured: Known, results: Mapping[str, Flags], left: Flags) -> float | None:
    """Return what attacks that do not follow the gradient break of what those along it leave."""
    here = (measured["heads"], measured["square"])
    indirect = [found["broken"] for found in here if found]
    if TRANSFER in results:
        indirect.append(~results[TRANSFER])
    if not indirect:
        return None
    left = left & ~measured["targeted"]["broken"] & results.get(WHITE_BOX, True)
    return _share(left & np.logical_or.reduce(indirect))


def _late_rise(losses: Float[np.ndarray, "examples steps"]) -> float | None:
    """Return what the last 10 steps add to the best loss, relative to all it gained."""
    if len(losses) == 0:
        return None
    gained = (losses[:, -1] - losses[:, 0]).sum()
    return float((losses[:, -1] - losses[:, -11]).sum() / gained) if gained > 0 else 1.0


def _share(flags: Flags) -> float:
    return float(np.mean(flags))
