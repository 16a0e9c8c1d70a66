"""What measurements say about the trust that a robust accuracy deserves: checks and a verdict.

Shares are of all examples. A share of examples that one attack breaks and a better one does not can
be chance when it is a single example: such checks ask for more than one example as well as for more
than 0.2 %. FGSM and PGD both break some that the other leaves, on any network: there the difference
has to exceed twice its standard deviation as well.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ancra_jax.attacks.job import Known

Flags = Bool[np.ndarray, "examples"]
Severity = Literal["masked", "suspicious"]
Verdict = Literal["trustworthy", "suspicious", "masked"]

AUTOATTACK, ADAPTIVE, WHITE_BOX, TRANSFER = "autoattack", "adaptive", "white-box", "transfer"
PARTS = (WHITE_BOX, TRANSFER)  # names in ``results`` that are no attack's accuracy
SHARE = 0.002


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
      name: what is looked for.
      value: what was found; None if it could not be looked for.
      threshold: the largest value that passes.
      fired: whether the value is above it; None if there is no value.
      severity: the verdict that the check asks for when it fires.
      meaning: what it means when it fires, in a sentence.
    """

    name: str
    value: float | None
    threshold: float
    fired: bool | None
    severity: Severity
    meaning: str


def verdict(checks: list[Check]) -> Verdict:
    """Return ``'masked'`` if a check fired that only a failing attack explains, ``'suspicious'`` if
    another one fired, else ``'trustworthy'``."""
    fired = {check.severity for check in checks if check.fired}
    return "masked" if "masked" in fired else "suspicious" if fired else "trustworthy"


def noticed_share(num_examples: int) -> float:
    """Return the smallest share of examples for which a check fires in 19 of 20 sets of this size.

    Of checks that look for a share of examples. With few examples a network is trustworthy for want
    of evidence.
    """
    from scipy.stats import binomtest  # half a second, and only reports need it

    passing = max(1, math.floor(SHARE * num_examples + 1e-9))  # so many do not fire
    return float(binomtest(passing, num_examples).proportion_ci(0.9).high)


class Evidence(NamedTuple):
    """What checks look at: measurements, and the examples that attacks made elsewhere left."""

    measured: Known
    results: Mapping[str, Flags]

    @property
    def natural(self) -> Flags:
        """The examples whose natural images are classified correctly."""
        return self.measured["clean"]["correct"]

    @property
    def curve(self) -> Float[np.ndarray, "radii"]:
        """The accuracies that are left at growing radii."""
        return self.measured["curve"]["correct"].mean(axis=0)

    def alone(self, one: str, other: str) -> Flags:
        """Return the examples that FGSM or PGD broke and the other one did not."""
        left, broken = self.measured[other]["correct"], ~self.measured[one]["correct"]
        return self.natural & broken & left


def checks_of(measured: Known, results: Mapping[str, Flags]) -> list[Check]:
    """Return all checks, in the order in which a reader should look at them.

    Args:
      measured: arrays by name; see ``measurements``.
      results: which examples stayed correct under attacks that were run elsewhere, by name.
    """
    evidence = Evidence(measured, results)
    checks = []
    for severity, table in _CHECKS.items():
        for name, (value_of, threshold_of, meaning) in table.items():
            value, threshold = value_of(evidence), float(threshold_of(evidence))
            fired = None if value is None else bool(value > threshold + 1e-9)
            checks.append(Check(name, value, threshold, fired, severity, meaning))
    return checks


def _none(evidence: Evidence) -> float:
    return 0.0


def _several(evidence: Evidence) -> float:
    """Return the share that one example, and 0.2 % of the examples, do not exceed."""
    return max(SHARE, 1 / len(evidence.natural))


def _beyond_chance(evidence: Evidence) -> float:
    differing = evidence.alone("fgsm", "pgd") | evidence.alone("pgd", "fgsm")
    return max(_several(evidence), 2 * np.sqrt(np.sum(differing)) / len(differing))


def _above_clean(evidence: Evidence) -> float:
    left = {name: evidence.measured[name]["correct"] for name in ("fgsm", "pgd")}
    left |= {name: flags for name, flags in evidence.results.items() if name not in PARTS}
    return max(map(_share, left.values())) - _share(evidence.natural)


def _one_step_gain(evidence: Evidence) -> float:
    return _share(evidence.alone("fgsm", "pgd")) - _share(evidence.alone("pgd", "fgsm"))


def _above_chance(evidence: Evidence) -> float:
    return float(evidence.curve[-2]) - 1 / int(evidence.measured["clean"]["classes"][0])


def _indirect_gain(evidence: Evidence) -> float | None:
    """Return what attacks that do not follow the gradient break of what those along it leave."""
    measured, results = evidence
    indirect = [
        measured[name]["broken"] for name in ("heads", "square") if "broken" in measured[name]
    ]
    if TRANSFER in results:
        indirect.append(~results[TRANSFER])
    if not indirect:
        return None
    left = evidence.natural & results.get(WHITE_BOX, True)
    for name in ("apgd", "longer", "restarted", "targeted"):
        left &= ~measured[name]["broken"]
    return _share(left & np.logical_or.reduce(indirect))


def _adaptive_gain(evidence: Evidence) -> float | None:
    results = evidence.results
    if not {AUTOATTACK, ADAPTIVE} <= set(results):
        return None
    return _share(evidence.natural & results[AUTOATTACK] & ~results[ADAPTIVE])


def _effort_gain(evidence: Evidence) -> float:
    broken = {name: arrays.get("broken") for name, arrays in evidence.measured.items()}
    return _share(evidence.natural & ~broken["apgd"] & (broken["longer"] | broken["restarted"]))


def _late_rise(evidence: Evidence) -> float | None:
    """Return what the last 10 steps add to the best loss, relative to all it gained.

    1 if it gained nothing, None without examples.
    """
    losses = evidence.measured["pgd"]["loss"][evidence.natural]
    if len(losses) == 0:
        return None
    gained = (losses[:, -1] - losses[:, 0]).sum()
    return float((losses[:, -1] - losses[:, -11]).sum() / gained) if gained > 0 else 1.0


def _noise_change(evidence: Evidence) -> float | None:
    changes = evidence.measured["noise"]["change"][evidence.natural]
    return float(changes.mean()) if len(changes) else None


def _lost(evidence: Evidence) -> float:
    pgd, apgd = evidence.measured["pgd"], evidence.measured["apgd"]
    lost = (pgd["met"] & pgd["correct"]) | (apgd["claimed"] & ~apgd["broken"])
    return _share(evidence.natural & lost)


def _share(flags: Flags) -> float:
    return float(np.mean(flags))


_Value = Callable[[Evidence], float | None]
_Threshold = Callable[[Evidence], float]

# By severity and name: the value (None where it cannot be told), the largest that passes, meaning.
_CHECKS: dict[Severity, dict[str, tuple[_Value, _Threshold, str]]] = {
    "masked": {
        "robust accuracy above clean accuracy": (
            _above_clean,
            _none,
            "an attack that works cannot raise the accuracy, so its gradient leads the wrong way: "
            "do not quote this accuracy, attack a surrogate that has a gradient",
        ),
        "one step beats many": (
            _one_step_gain,
            _beyond_chance,
            "a single step breaks more examples than 40 steps do, so the loss between is not what "
            "its gradient says: count the worst of several attacks",
        ),
        "robust accuracy rises with epsilon": (
            lambda evidence: float(np.diff(evidence.curve).max()),
            _several,
            "a larger ball holds the smaller one, so it is the attack that fails: quote no radius "
            "before a stronger attack makes the curve fall",
        ),
        "accuracy above chance at Linf 0.5": (
            _above_chance,
            _none,
            "within 0.5 every image can be made grey, so what is still right was not attacked: "
            "find out what stops the gradient",
        ),
        "accuracy under an unbounded attack": (
            lambda evidence: float(evidence.curve[-1]),
            _several,
            "an attack that may show any image at all must break every example: find out what "
            "stops the gradient",
        ),
        "zero input gradient": (
            lambda evidence: _share(evidence.measured["gradient"]["zero"]),
            _none,
            "where the gradient is exactly 0 gradient attacks are blind (saturated logits, "
            "quantisation): use a surrogate, or a loss that is not saturated",
        ),
        "gradient-free or transfer beats white-box": (
            _indirect_gain,
            _several,
            "attacks that do not follow this gradient break what attacks that follow it leave, so "
            "the gradient is masked: attack what decides the output through a surrogate",
        ),
        "adaptive attack beats AutoAttack": (
            _adaptive_gain,
            _several,
            "attacks made for this defence lower the robust accuracy that AutoAttack reports: "
            "quote the adaptive worst case",
        ),
    },
    "suspicious": {
        "more effort breaks more": (
            _effort_gain,
            _several,
            "twice the iterations or a second start still help: attack longer before quoting a "
            "number",
        ),
        "loss still rises at the end": (
            _late_rise,
            lambda evidence: 0.05,
            "the last 10 of 40 steps bring more than 5 % of all that the loss gained (or it gained "
            "nothing), so the attack has not converged: give it more steps or larger ones",
        ),
        "noisy landscape": (
            _noise_change,
            lambda evidence: 0.1,
            "random noise within 4/255 changes the margin by more than 10 %, so single gradients "
            "say little: average them over noise or draws (EOT)",
        ),
        "adversarial iterate lost": (
            _lost,
            _several,
            "an attack met a misclassified image and returned one that is not (its last iterate, "
            "or a fresh forward pass denies it): keep the worst iterate, average over draws",
        ),
        "outputs differ between calls": (
            lambda evidence: float(evidence.measured["clean"]["difference"][0]),
            lambda evidence: 1e-4,
            "the model is randomised: pass its randomness as a key and use AutoAttack's version "
            "'rand'",
        ),
    },
}
