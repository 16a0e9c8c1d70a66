"""What measurements say about the trust that a robust accuracy deserves: rows and a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

Flags = Bool[np.ndarray, "examples"]
Arrays = Mapping[str, np.ndarray]
Verdict = Literal["trustworthy", "suspicious", "masked"]

SHARE = 0.002
RISING = 0.05
NOISY = 0.1
RANDOM = 1e-4


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
      name: what is looked for.
      value: what was found; None if it could not be looked for.
      threshold: the largest value that passes.
      fired: whether the value is above it; None if there is no value.
      severity: the verdict that a fired row asks for, ``'masked'`` or ``'suspicious'``.
      meaning: what it means when it fires, in a sentence.
    """

    name: str
    value: float | None
    threshold: float
    fired: bool | None
    severity: Literal["masked", "suspicious"]
    meaning: str


def verdict(rows: list[Row]) -> Verdict:
    """``'masked'`` if a row fired that only a failing attack explains, ``'suspicious'`` if another
    one did, else ``'trustworthy'``."""
    fired = {row.severity for row in rows if row.fired}
    return "masked" if "masked" in fired else "suspicious" if fired else "trustworthy"


def rows_of(measured: Mapping[str, Arrays], results: Mapping[str, Flags]) -> list[Row]:
    """All checks, in the order in which a reader should look at them.

    Shares are of all examples. A share of examples that one attack breaks and a better one does not
    can be chance when it is a single example: such rows ask for more than one example as well as
    for more than 0.2 %.

    Args:
      measured: see ``diagnostics_measurements``.
      results: which examples stayed correct under attacks that were run elsewhere, by name;
        'autoattack', 'adaptive' and 'transfer' have a meaning here.
    """
    clean = measured["clean"]["correct"]
    count = len(clean)
    several = max(SHARE, 1 / count)  # the share that has to be exceeded
    base = clean & ~measured["apgd"]["broken"]
    pgd, fgsm = measured["pgd"]["correct"], measured["fgsm"]["correct"]
    more = measured["longer"]["broken"] | measured["restarted"]["broken"]
    white_box = base & ~more & ~measured["targeted"]["broken"]
    indirect = measured["square"]["broken"] | measured["heads"]["broken"]
    if "transfer" in results:
        indirect |= ~results["transfer"]
    accuracies = {"fgsm": fgsm, "pgd": pgd} | dict(results)
    curve = measured["curve"]["correct"].mean(axis=0)
    chance = 1 / int(measured["clean"]["classes"][0])
    losses = measured["pgd"]["loss"]
    last_steps = (losses[:, -1] - losses[:, -2])[clean].sum()
    whole = (losses[:, -1] - losses[:, 0])[clean].sum()
    gain = None
    if {"autoattack", "adaptive"} <= set(results):
        gain = _share(results["autoattack"] & clean) - _share(
            results["autoattack"] & results["adaptive"] & clean
        )

    return [
        _row(
            "robust accuracy above clean accuracy",
            max(_share(flags) for flags in accuracies.values()) - _share(clean),
            0.0,
            "masked",
            "an attack that works cannot raise the accuracy: its gradient leads the wrong way",
        ),
        _row(
            "one step beats many",
            _share(clean & ~fgsm & pgd),
            several,
            "masked",
            "a single step breaks examples that 40 steps leave standing: the loss surface between "
            "is not what its gradient says",
        ),
        _row(
            "robust accuracy rises with epsilon",
            float(np.diff(curve).max()),
            several,
            "masked",
            "a larger ball holds the smaller one: the attack fails, not the model's robustness",
        ),
        _row(
            "accuracy above chance at Linf 0.5",
            float(curve[-2]) - chance,
            0.0,
            "masked",
            "within 0.5 every image can be made grey: whatever is still right was not attacked",
        ),
        _row(
            "accuracy under an unbounded attack",
            float(curve[-1]),
            several,
            "masked",
            "an attack that may show any image at all must break every example",
        ),
        _row(
            "zero input gradient",
            _share(measured["gradient"]["zero"]),
            0.0,
            "masked",
            "where the gradient is exactly 0 gradient attacks are blind (saturated logits, "
            "quantisation); use a surrogate or a loss that is not saturated",
        ),
        _row(
            "gradient-free or transfer beats white-box",
            _share(white_box & indirect),
            several,
            "masked",
            "attacks that do not see this gradient break what attacks that follow it leave: the "
            "gradient is masked",
        ),
        _row(
            "adaptive attack beats AutoAttack",
            gain,
            several,
            "masked",
            "attacks made for this defence lower the robust accuracy that AutoAttack reports: "
            "quote the adaptive worst case",
        ),
        _row(
            "more effort breaks more",
            _share(base & more),
            several,
            "suspicious",
            "twice the iterations or a second start still help: attack longer before quoting a "
            "number",
        ),
        _row(
            "loss still rises at the end",
            float(last_steps / whole) if whole > 0 else 1.0,
            RISING,
            "suspicious",
            "the attack's last 10 steps bring more than 5 % of all it gained (or it gained "
            "nothing): it has not converged",
        ),
        _row(
            "noisy landscape",
            float(measured["noise"]["change"][clean].mean()) if clean.any() else None,
            NOISY,
            "suspicious",
            "random noise within 4/255 changes the margin by more than 10 %: single gradients say "
            "little; average them (EOT) or smooth the model",
        ),
        _row(
            "adversarial iterate lost",
            _share(measured["apgd"]["claimed"] & ~measured["apgd"]["broken"]),
            several,
            "suspicious",
            "the attack saw a misclassification that a fresh forward pass denies: the model is "
            "randomised or numerically unstable",
        ),
        _row(
            "outputs differ between calls",
            float(measured["clean"]["difference"][0]),
            RANDOM,
            "suspicious",
            "the model is randomised: pass its randomness as a key and use AutoAttack's version "
            "'rand'",
        ),
    ]


def _row(name, value, threshold, severity, meaning):
    fired = None if value is None else bool(value > threshold + 1e-9)
    return Row(name, value, threshold, fired, severity, meaning)


def _share(flags):
    return float(np.mean(flags))
