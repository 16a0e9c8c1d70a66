"""Paired comparison of two methods over the same test examples and training seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ancra_jax.results.statistics import bootstrap_interval
from tools.publish.groups import Group, correct_under, method_title
from tools.publish.record import Published


@dataclass(frozen=True)
class Comparison:
    """What one method has more than another.

    Attributes:
      what: is added: ANC, RA or both.
      method: with it.
      baseline: without it.
    """

    what: str
    method: str
    baseline: str

    @property
    def title(self) -> str:
        """The difference that is taken."""
        return f"{method_title(self.method)} − {method_title(self.baseline)}"


@dataclass(frozen=True)
class Difference:
    """Of two methods' accuracies, in points of 100.

    Attributes:
      points: the method's mean minus the baseline's, over seeds and examples.
      low, high: the 95 % interval of the bootstrap.
      num_seeds: that both were trained with.
    """

    points: float
    low: float
    high: float
    num_seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        return f"{self.points:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


COMPARISONS = (
    Comparison("ANC", "trades_anc", "trades"),
    Comparison("ANC", "trades_ancra", "trades_ra"),
    Comparison("RA", "trades_ra", "trades"),
    Comparison("RA", "trades_ancra", "trades_anc"),
    Comparison("ANCRA", "trades_ancra", "trades"),
    Comparison("ANCRA", "pgd_at_ancra", "pgd_at"),
)


def difference(group: Group, comparison: Comparison, attack: str) -> Difference | None:
    """The difference under an attack; None where a method or the attack is missing.

    Rows are paired by seed: the same seed holds out the same images and visits them in one order.
    """
    methods = _by_seed(group.of_method(comparison.method))
    baselines = _by_seed(group.of_method(comparison.baseline))
    shared = sorted(methods.keys() & baselines.keys())
    return _difference([(methods[seed], attack, baselines[seed], attack) for seed in shared])


def row_difference(group: Group, method: str, attack: str, other: str) -> Difference | None:
    """What a method has more under one attack than under another."""
    return _difference([(one, attack, one, other) for one in group.of_method(method)])


def _difference(pairs: Sequence[tuple[Published, str, Published, str]]) -> Difference | None:
    rows = []
    for one, attack, other, other_attack in pairs:
        correct, baseline = correct_under(one, attack), correct_under(other, other_attack)
        if correct is None or baseline is None:
            return None
        count = one.num_examples
        rows.append(correct[:count].astype(int) - baseline[:count])
    if not rows:
        return None
    paired = np.stack(rows)
    low, high = bootstrap_interval(paired)
    return Difference(100 * float(paired.mean()), 100 * low, 100 * high, len(rows))


def _by_seed(rows: Sequence[Published]) -> dict[int, Published]:
    return {one.record["seed"]: one for one in rows}
