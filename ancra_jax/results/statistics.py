"""The numbers that are computed from results, each in one place."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ancra_jax.results.names import AUTOATTACK, NATURAL, in_scenario, parse

MEAN_FAMILIES = ("PGD", "FGSM", "C&W", "AA")
RESAMPLES = 2000
LEAST_SEEDS = 3  # of which a difference is claimed
_AT_ONCE = 100
_ROUNDING = 1e-9  # of sums whose value is 0; no share is as small

Correct = Bool[np.ndarray, "_"]
"""Whether the final logits are right, of each of the first examples of the test split."""


def survivors(correct: Mapping[str, Correct]) -> Bool[np.ndarray, "examples"]:
    """Return which examples are right in every result, of those that all (at least one) saw."""
    count = min(map(len, correct.values()))
    return np.logical_and.reduce([one[:count] for one in correct.values()])


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927), as fractions."""
    from scipy.stats import binomtest  # 50 MiB and half a second, and no training needs it

    interval = binomtest(num_correct, num_examples).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class WorstCase:
    """The examples that are right on the natural image and under every attack."""

    accuracy: float  # their share
    interval: tuple[float, float]  # the 95 % Wilson interval of the share, as fractions
    num_correct: int
    num_examples: int  # that all attacks saw
    attacks: tuple[str, ...]  # that took part


def worst_case(correct: Mapping[str, Correct]) -> WorstCase | None:
    """Return the worst case; None where the natural images or the attacks are missing."""
    attacks = tuple(name for name in correct if name != NATURAL)
    if NATURAL not in correct or not attacks:
        return None
    left = survivors(correct)
    count, total = int(left.sum()), len(left)
    return WorstCase(count / total, wilson_interval(count, total), count, total, attacks)


def mean_attacks(attacks: Iterable[str], scenario: str) -> list[str]:
    """Return the attacks that the paper's mean is over: PGD, FGSM, C&W and standard AutoAttack.

    If an attack was run with several numbers of steps, the largest number counts; attacks of the
    authors' code do not. Empty where one of the four is missing.
    """
    chosen = {}
    for name in sorted(attacks, key=lambda name: parse(name).steps):
        family, released = parse(name).family, parse(name).released
        if in_scenario(name, scenario) and not released and (family != "AA" or name == AUTOATTACK):
            chosen[family] = name
    found = [chosen[family] for family in MEAN_FAMILIES if family in chosen]
    return found if len(found) == len(MEAN_FAMILIES) else []


def paper_mean(accuracy: Mapping[str, float], scenario: str) -> float | None:
    """Return the mean over ``mean_attacks``; None where one of the four attacks is missing."""
    names = mean_attacks(accuracy, scenario)
    return statistics.fmean(accuracy[name] for name in names) if names else None


def fooled(correct: Mapping[str, Correct]) -> dict[str, tuple[float, float]]:
    """Return the attacks that leave more accuracy than there is on natural images.

    An attack that works cannot do that: the network hides its gradient from it.

    Returns:
      By attack, its accuracy and the natural one, both of the examples that the two results share.
    """
    found = {}
    for name, one in correct.items() if NATURAL in correct else ():
        count = min(len(one), len(correct[NATURAL]))
        accuracy, natural = one[:count].mean(), correct[NATURAL][:count].mean()
        if accuracy > natural:
            found[name] = (float(accuracy), float(natural))
    return found


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; of one seed the deviation is 0."""

    mean: float
    std: float


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class Difference:
    """How much larger one accuracy is than another, as a fraction."""

    mean: float  # over seeds and examples
    low: float  # of the 95 % interval of the bootstrap
    high: float
    num_seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is on one side of 0, else 0; with one or two seeds always 0.

        Resampling so few says next to nothing of another training, which may turn it around.
        """
        if self.num_seeds < LEAST_SEEDS:
            return 0
        return int(self.low > _ROUNDING) - int(self.high < -_ROUNDING)


def difference(pairs: Sequence[tuple[Correct, Correct]]) -> Difference:
    """Return how much more the first of each pair has than the second; a pair is of one seed.

    All results are of the same examples.
    """
    paired = np.stack([one.astype(int) - other for one, other in pairs])
    return Difference(float(paired.mean()), *bootstrap_interval(paired), len(pairs))


def bootstrap_interval(differences: Int[np.ndarray, "seeds examples"]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, resampling seeds and examples.

    Both are taken as draws from what they stand for, independent of each other (the pigeonhole
    bootstrap, Owen 2007). With one seed the interval is of the examples alone.
    """
    rng = np.random.default_rng(0)
    means: list[float] = []
    for _ in range(RESAMPLES // _AT_ONCE):
        # The share of each seed, and of each example, in draws with replacement.
        seeds, examples = (
            rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE) / count
            for count in differences.shape
        )
        means += ((seeds @ differences) * examples).sum(axis=1).tolist()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
