"""What AutoAttack found, and the worst case of several evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ancra_jax.attacks.autoattack.checks import attack_warnings
from ancra_jax.attacks.autoattack.ensemble import Attack
from ancra_jax.attacks.autoattack.state import BROKEN, WITHSTOOD, State
from ancra_jax.attacks.job import CLEAN, HostImages

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
        every example that is classified correctly without an attack.
    """

    name: str
    group: str
    attacked: int
    broken: int
    accuracy_after: float
    own_accuracy: float | None


@dataclass(frozen=True, repr=False)
class AutoAttackResult:
    """The robust accuracy and, for every example, what broke it.

    Attributes:
      images: adversarial images where an attack succeeded, the natural images elsewhere.
      robust: whether the natural image is classified correctly and no attack broke the example.
      broken_by: name of the attack that broke the example, 'clean' if the natural image is
        misclassified already, '' if robust.
      target: the class which that attack aimed at; -1 if it was untargeted or there was none.
      norms: size of the perturbation in the threat model's norm; 0 where no attack succeeded.
      queries: forward passes spent on the example.
      accuracies: 'clean' (natural accuracy) and, in order, every attack: the accuracy after it.
      warnings: why the result may be too optimistic, or differ from what was asked for.
      records: what each attack did; those that ``max_seconds`` left out are missing.
      complete: whether all attacks ran to their end.
    """

    images: HostImages
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
        """The share of natural images that are classified correctly."""
        return self.accuracies[CLEAN]

    @property
    def robust_accuracy(self) -> float:
        """The share of examples that are classified correctly whatever the attacks did."""
        return float(self.robust.mean())

    def __repr__(self) -> str:
        ended = "" if self.complete else ", stopped before its end"
        lines = [f"AutoAttackResult({len(self.robust)} examples{ended}"]
        lines += [f"  accuracy {left:7.2%}  {name}" for name, left in self.accuracies.items()]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines) + ")"


def result_of(
    state: State,
    attacks: Sequence[Attack],
    images: HostImages,
    warnings: list[str],
    max_seconds: float | int | None,
) -> AutoAttackResult:
    """Return what the state of a finished evaluation says, or of one that a limit stopped."""
    names = [attack.name for attack in attacks]
    finished = state.attack
    if finished < len(attacks):
        warnings.append(
            f"stopped after {max_seconds:g} s in {names[finished]} (attack {finished + 1} of "
            f"{len(attacks)}): the robust accuracy is what was left by then"
        )
    accuracies = state.accuracies[: finished + 1].tolist()
    return AutoAttackResult(
        images=images,
        robust=state.robust,
        broken_by=state.broken_by,
        target=state.target,
        norms=state.norms,
        queries=state.queries,
        accuracies=dict(zip([CLEAN, *names[:finished]], accuracies, strict=True)),
        warnings=warnings + attack_warnings(state, names),
        records=tuple(_record(state, number, attacks[number]) for number in range(finished)),
        complete=finished == len(attacks),
    )


def _record(state: State, number: int, attack: Attack) -> AttackRecord:
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
    """Return the pointwise worst case of several evaluations of the same examples.

    Args:
      results: of one model on the same images in the same order, such as those of several keys.

    Returns:
      For every example the first result that broke it; ``accuracies`` has, after 'clean', what is
      left after each result: 'run 1', 'run 2' ... Queries add up, warnings are united.

    Raises:
      ValueError: no results, or results over different examples.
    """
    if not results:
        raise ValueError("results is empty")
    first = results[0]
    wrong = first.broken_by == CLEAN
    merged: dict[str, Any] = {name: np.copy(getattr(first, name)) for name in _PER_EXAMPLE}
    accuracies = {CLEAN: first.clean_accuracy}
    for number, result in enumerate(results, start=1):
        same_shape = result.images.shape == first.images.shape
        if not same_shape or not np.array_equal(result.broken_by == CLEAN, wrong):
            raise ValueError("results are of different examples or models")
        newly = merged["robust"] & ~result.robust
        for name in _PER_EXAMPLE:
            merged[name][newly] = getattr(result, name)[newly]
        accuracies[f"run {number}"] = float(merged["robust"].mean())
    return AutoAttackResult(
        queries=np.sum([result.queries for result in results], axis=0),
        accuracies=accuracies,
        warnings=list(dict.fromkeys(line for result in results for line in result.warnings)),
        complete=all(result.complete for result in results),
        **merged,
    )
