"""The numbers that are computed from results: means, intervals, spreads."""

import math
import statistics
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Int

from ancra_jax.results.names import FAMILIES, NATURAL, WITH_P, attacks_of, display_name, scenario_of


def paper_mean(accuracy: dict[str, float], suffix: str) -> float | None:
    """The paper's mean over FGSM, PGD, C&W (without or with p) and AutoAttack; None if not run."""
    names = [
        name
        for name in accuracy
        if name.startswith(("fgsm", "pgd", "cw")) and name.endswith("_with_p") == bool(suffix)
    ]
    if not names or "autoattack" not in accuracy:
        return None
    return sum(accuracy[name] for name in [*names, "autoattack"]) / (len(names) + 1)


def fooled_attacks(accuracy: dict[str, float]) -> list[str]:
    """A warning for every attack that leaves more accuracy than there is without an attack."""
    return [
        f"{name} leaves {value:.2%}, more than the natural accuracy {accuracy['natural']:.2%}: "
        "an attack that works cannot do that; the network hides its gradient from it"
        for name, value in accuracy.items()
        if value > accuracy.get("natural", 1.0)
    ]


RESAMPLES = 2000
_AT_ONCE = 100


def bootstrap_interval(differences: Int[np.ndarray, "seeds examples"]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, resampling seeds and examples independently.

    Both are taken as draws from what they stand for, independent of each other (the pigeonhole
    bootstrap, Owen 2007). With one seed the interval is of the examples alone.
    """
    num_seeds, num_examples = differences.shape
    rng = np.random.default_rng(0)
    means: list[float] = []
    for _ in range(RESAMPLES // _AT_ONCE):
        seeds = _resample(rng, num_seeds)
        examples = _resample(rng, num_examples)
        means += ((seeds @ differences) * examples).sum(axis=1).tolist()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _resample(rng: np.random.Generator, count: int) -> np.ndarray:
    """The share of each of ``count`` in a draw of so many with replacement; a row a draw."""
    return rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE) / count


_Z = NormalDist().inv_cdf(0.975)


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927), as fractions."""
    share = num_correct / num_examples
    shrink = 1 + _Z**2 / num_examples
    centre = (share + _Z**2 / (2 * num_examples)) / shrink
    spread = share * (1 - share) / num_examples + _Z**2 / (4 * num_examples**2)
    half = _Z * math.sqrt(spread) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    mean: float
    std: float


def in_mean(attack: str) -> bool:
    """Whether the paper's mean counts the attack."""
    return display_name(attack.removesuffix(WITH_P)).partition("-")[0] in FAMILIES[1:]


def _means(accuracy: dict[str, float]) -> dict[str, float]:
    """The paper's mean of each scenario: over its PGD, FGSM, C&W, and AutoAttack."""
    means = {}
    for scenario in dict.fromkeys(scenario_of(name) for name in accuracy if name != NATURAL):
        names = [name for name in attacks_of(scenario, accuracy, FAMILIES) if in_mean(name)]
        if names:
            means[scenario] = statistics.fmean(accuracy[name] for name in names)
    return means


def _spreads(rows: list[dict[str, float]]) -> dict[str, Spread]:
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: _spread([row[name] for row in rows]) for name in shared}


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values))
