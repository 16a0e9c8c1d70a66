"""What measurements say about the trust that a robust accuracy deserves: rows and a verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

Flags = Bool[np.ndarray, "examples"]
Arrays = Mapping[str, np.ndarray]
Verdict = Literal["trustworthy", "suspicious", "masked"]

AUTOATTACK, ADAPTIVE, WHITE_BOX, TRANSFER = "autoattack", "adaptive", "white-box", "transfer"
PARTS = (WHITE_BOX, TRANSFER)  # names in ``results`` that are no attack's accuracy
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


def noticed_share(num_examples: int) -> float:
    """The smallest share of examples for which a row fires in 19 of 20 sets of so many examples.

    Of rows that look for a share of examples; see ``rows_of``. With few examples a network is
    trustworthy for want of evidence.
    """
    passing = max(1, math.floor(SHARE * num_examples + 1e-9))  # so many do not fire
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        unnoticed = sum(
            math.exp(_log_binomial(num_examples, count, share)) for count in range(passing + 1)
        )
        low, high = (share, high) if unnoticed > 0.05 else (low, share)
    return high


def _log_binomial(trials, count, share):
    choices = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return choices + count * math.log(share) + (trials - count) * math.log1p(-share)


def rows_of(measured: Mapping[str, Arrays], results: Mapping[str, Flags]) -> list[Row]:
    """All checks, in the order in which a reader should look at them.

    Shares are of all examples. A share of examples that one attack breaks and a better one does not
    can be chance when it is a single example: such rows ask for more than one example as well as
    for more than 0.2 %. FGSM and PGD both break some that the other leaves, on any network: there
    the difference has to exceed twice its standard deviation as well.

    Args:
      measured: see ``diagnostics_measurements``.
      results: which examples stayed correct under attacks that were run elsewhere, by name; see
        ``diagnose``.
    """
    clean = measured["clean"]["correct"]
    several = max(SHARE, 1 / len(clean))  # the share that has to be exceeded
    pgd, fgsm = measured["pgd"], measured["fgsm"]
    apgd = measured["apgd"]
    more = measured["longer"]["broken"] | measured["restarted"]["broken"]
    attacked = {"fgsm": fgsm["correct"], "pgd": pgd["correct"]} | dict(results)
    above = max(_share(flags) for name, flags in attacked.items() if name not in PARTS)
    one_step = clean & ~fgsm["correct"] & pgd["correct"]  # what it alone breaks
    many_steps = clean & fgsm["correct"] & ~pgd["correct"]
    curve = measured["curve"]["correct"].mean(axis=0)
    chance = 1 / int(measured["clean"]["classes"][0])
    lost = (pgd["met"] & pgd["correct"]) | (apgd["claimed"] & ~apgd["broken"])

    return [
        _row(
            "robust accuracy above clean accuracy",
            above - _share(clean),
            0.0,
            "masked",
            "an attack that works cannot raise the accuracy, so its gradient leads the wrong way: "
            "do not quote this accuracy, attack a surrogate that has a gradient",
        ),
        _row(
            "one step beats many",
            _share(one_step) - _share(many_steps),
            max(several, 2 * np.sqrt(np.sum(one_step | many_steps)) / len(clean)),
            "masked",
            "a single step breaks more examples than 40 steps do, so the loss between is not what "
            "its gradient says: count the worst of several attacks",
        ),
        _row(
            "robust accuracy rises with epsilon",
            float(np.diff(curve).max()),
            several,
            "masked",
            "a larger ball holds the smaller one, so it is the attack that fails: quote no radius "
            "before a stronger attack makes the curve fall",
        ),
        _row(
            "accuracy above chance at Linf 0.5",
            float(curve[-2]) - chance,
            0.0,
            "masked",
            "within 0.5 every image can be made grey, so what is still right was not attacked: "
            "find out what stops the gradient",
        ),
        _row(
            "accuracy under an unbounded attack",
            float(curve[-1]),
            several,
            "masked",
            "an attack that may show any image at all must break every example: find out what "
            "stops the gradient",
        ),
        _row(
            "zero input gradient",
            _share(measured["gradient"]["zero"]),
            0.0,
            "masked",
            "where the gradient is exactly 0 gradient attacks are blind (saturated logits, "
            "quantisation): use a surrogate, or a loss that is not saturated",
        ),
        _row(
            "gradient-free or transfer beats white-box",
            _indirect_gain(measured, results, more),
            several,
            "masked",
            "attacks that do not follow this gradient break what attacks that follow it leave, so "
            "the gradient is masked: attack what decides the output through a surrogate",
        ),
        _row(
            "adaptive attack beats AutoAttack",
            _adaptive_gain(clean, results),
            several,
            "masked",
            "attacks made for this defence lower the robust accuracy that AutoAttack reports: "
            "quote the adaptive worst case",
        ),
        _row(
            "more effort breaks more",
            _share(clean & ~apgd["broken"] & more),
            several,
            "suspicious",
            "twice the iterations or a second start still help: attack longer before quoting a "
            "number",
        ),
        _row(
            "loss still rises at the end",
            _late_rise(pgd["loss"][clean]),
            RISING,
            "suspicious",
            "the last 10 of 40 steps bring more than 5 % of all that the loss gained (or it gained "
            "nothing), so the attack has not converged: give it more steps or larger ones",
        ),
        _row(
            "noisy landscape",
            float(measured["noise"]["change"][clean].mean()) if clean.any() else None,
            NOISY,
            "suspicious",
            "random noise within 4/255 changes the margin by more than 10 %, so single gradients "
            "say little: average them over noise or draws (EOT)",
        ),
        _row(
            "adversarial iterate lost",
            _share(clean & lost),
            several,
            "suspicious",
            "an attack met a misclassified image and returned one that is not (its last iterate, "
            "or a fresh forward pass denies it): keep the worst iterate, average over draws",
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


def _indirect_gain(measured, results, more):
    """What attacks that do not follow the gradient break of what those that follow it leave."""
    indirect = [
        measured[name]["broken"] for name in ("heads", "square") if "broken" in measured[name]
    ]
    if TRANSFER in results:
        indirect.append(~results[TRANSFER])
    if not indirect:
        return None
    left = measured["clean"]["correct"] & ~measured["apgd"]["broken"] & ~more
    left &= ~measured["targeted"]["broken"]
    if WHITE_BOX in results:
        left &= results[WHITE_BOX]
    return _share(left & np.logical_or.reduce(indirect))


def _adaptive_gain(clean, results):
    """What the adaptive attacks take away from AutoAttack's robust accuracy."""
    if not {AUTOATTACK, ADAPTIVE} <= set(results):
        return None
    return _share(clean & results[AUTOATTACK] & ~results[ADAPTIVE])


def _late_rise(losses):
    """What the last 10 steps add to the best loss, relative to all it gained; 1 if it gained
    nothing, None without examples."""
    if len(losses) == 0:
        return None
    gained = (losses[:, -1] - losses[:, 0]).sum()
    return float((losses[:, -1] - losses[:, -11]).sum() / gained) if gained > 0 else 1.0


def _row(name, value, threshold, severity, meaning):
    fired = None if value is None else bool(value > threshold + 1e-9)
    return Row(name, value, float(threshold), fired, severity, meaning)


def _share(flags):
    return float(np.mean(flags))
