"""What AutoAttack found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ancra_jax.attacks.autoattack.ensemble import Attack
from ancra_jax.attacks.autoattack.state import BROKEN, WITHSTOOD, State
from ancra_jax.attacks.types import CLEAN

_PER_EXAMPLE = ("images", "robust", "broken_by", "target", "norms")


class AttackRecord(NamedTuple):
    """What one attack of the list did.

    Attributes:
      name: of the attack.
      group: it belongs to.
      attacked: how many examples it was tried on.
      broken: how many of them it broke.
      accuracy_after: robust accuracy after it and all before it.
      own_accuracy: what it would leave if it were the only attack; None if it was not tried on
        every example that is classified correctly when clean.
    """

    name: str
    group: str
    attacked: int
    broken: int
    accuracy_after: float
    own_accuracy: float | None


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found.

    Attributes:
      images: adversarial images where an attack succeeded, the natural images elsewhere.
      robust: classified correctly when clean and broken by no attack.
      broken_by: name of the attack that broke the example, 'clean' if the clean image is
        misclassified already, '' if robust.
      target: the class which that attack aimed at; -1 if it was untargeted or there was none.
      norms: size of the perturbation in the threat model's norm; 0 where no attack succeeded.
      queries: forward passes spent on the example.
      accuracies: 'clean' and, in order, every attack: the accuracy that was left after it.
      warnings: why the result may be too optimistic, or differ from what was asked for.
      records: what each attack did; those that ``max_seconds`` left out are missing.
      complete: whether all attacks ran to their end.
    """

    images: Float[np.ndarray, "examples height width channels"]
    robust: Bool[np.ndarray, "examples"]
    broken_by: np.ndarray
    target: Int[np.ndarray, "examples"]
    norms: Float[np.ndarray, "examples"]
    queries: Int[np.ndarray, "examples"]
    accuracies: dict[str, float]
    warnings: list[str]
    records: tuple[AttackRecord, ...] = ()
    complete: bool = True

    @property
    def clean_accuracy(self) -> float:
        """Share of clean images that are classified correctly."""
        return self.accuracies[CLEAN]

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that are classified correctly whatever the attacks did."""
        return float(self.robust.mean())


def record(state: State, number: int, attack: Attack) -> AttackRecord:
    """Reads off the state what a finished attack, the ``number``-th of the list, did."""
    outcomes = state.outcomes[number]
    withstood, broken = int((outcomes == WITHSTOOD).sum()), int((outcomes == BROKEN).sum())
    on_all = withstood + broken == int((state.broken_by != CLEAN).sum())
    return AttackRecord(
        name=attack.name,
        group=attack.group,
        attacked=withstood + broken,
        broken=broken,
        accuracy_after=float(state.accuracies[number + 1]),
        own_accuracy=withstood / len(outcomes) if on_all else None,
    )


def worst_case(results: Sequence[AutoAttackResult]) -> AutoAttackResult:
    """The pointwise worst case of several evaluations of the same examples, as of several seeds.

    Args:
      results: of one model on the same images, in the same order.

    Returns:
      For every example the first result that broke it; ``accuracies`` has, after 'clean', what is
      left after each result: 'run 1', 'run 2' ... Queries add up, warnings are united.

    Raises:
      ValueError: no results, or results over different examples.
    """
    if not results:
        raise ValueError("results is empty")
    first = results[0]
    for other in results[1:]:
        same = (other.broken_by == CLEAN).tolist() == (first.broken_by == CLEAN).tolist()
        if other.images.shape != first.images.shape or not same:
            raise ValueError("results are of different examples or models")
    merged: dict[str, Any] = {name: np.copy(getattr(first, name)) for name in _PER_EXAMPLE}
    queries = np.sum([result.queries for result in results], axis=0)
    accuracies = {CLEAN: first.clean_accuracy, "run 1": first.robust_accuracy}
    for number, other in enumerate(results[1:], start=2):
        newly = merged["robust"] & ~other.robust
        for name in _PER_EXAMPLE:
            merged[name][newly] = getattr(other, name)[newly]
        accuracies[f"run {number}"] = float(merged["robust"].mean())
    warnings = list(dict.fromkeys(line for result in results for line in result.warnings))
    return AutoAttackResult(
        queries=queries,
        accuracies=accuracies,
        warnings=warnings,
        complete=all(result.complete for result in results),
        **merged,
    )
