"""The attacks that AutoAttack is made of, and the versions that list them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ancra_jax.attacks.apgd import apgd
from ancra_jax.attacks.fab import fab
from ancra_jax.attacks.square import square
from ancra_jax.attacks.types import AttackResult


@dataclass(frozen=True)
class Attack:
    """One attack of a list.

    It runs in passes: one per target if it is targeted, else one per restart. Examples that a pass
    broke skip the later ones.

    Attributes:
      name: recorded for the examples it breaks.
      run: ``run(logits_fn, images, labels, threat_model, *, key, indices, active)``, with
        ``targets`` too if targeted, to an ``AttackResult``.
      targeted: whether it aims at a class; the targets are the classes that the clean logits rank
        second, third ...
      num_restarts: passes of an untargeted attack, each with its own randomness.
      options: further keyword arguments of ``run``.
      group: of attacks that belong together, for the reader of the result.
      cost: forward passes that a pass spends on an example, roughly; the estimate of the remaining
        time is made of it.
      exhaustive: whether it gets all examples that are classified correctly when clean, not just
        those that are still robust. Its own accuracy is known only then.
    """

    name: str
    run: Callable[..., AttackResult]
    targeted: bool = False
    num_restarts: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    cost: float | int = 1
    exhaustive: bool = False

    def num_passes(self, num_targets: int) -> int:
        """One per target, or one per restart."""
        return num_targets if self.targeted else self.num_restarts


@dataclass(frozen=True)
class Budget:
    """How long the attacks run.

    Attributes:
      num_steps: gradient steps of APGD and FAB.
      num_queries: queries of Square.
      gradient_draws: gradients averaged in a step on a randomised model.
      randomized: whether the model is called with a ``key``.
    """

    num_steps: int = 100
    num_queries: int = 5000
    gradient_draws: int = 20
    randomized: bool = False


GRADIENT_COST = 3.0
"""Forward passes that a value with its input gradient takes as much time as."""

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
GRADIENT_ONLY = ("apgd-ce", "apgd-dlr", "apgd-t")


def plan(
    version: str,
    attacks_to_run: Sequence[str | Attack] | None,
    num_classes: int,
    budget: Budget,
) -> tuple[list[Attack], list[str]]:
    """The attacks of a version in their order, and what the number of classes changed in them.

    Raises:
      ValueError: an unknown version or attack, or settings that do not go together.
    """
    if version == "custom":
        if not attacks_to_run:
            raise ValueError("version='custom' needs attacks_to_run")
        wanted: Sequence[str | Attack] = attacks_to_run
    elif version in VERSIONS:
        if attacks_to_run is not None:
            raise ValueError(
                f"attacks_to_run goes with version='custom', not with version={version!r}"
            )
        wanted = VERSIONS[version]
    else:
        allowed = ", ".join(map(repr, [*VERSIONS, "custom"]))
        raise ValueError(f"version={version!r}: allowed are {allowed}")
    restarts = 5 if version == "plus" else 1
    attacks: list[Attack] = []
    notes: list[str] = []
    for entry in wanted:
        if isinstance(entry, Attack):
            attacks.append(entry)
        else:
            attacks.append(_named(entry, num_classes, restarts, budget, notes))
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks_to_run={names}: every name may occur once")
    return attacks, notes


def describe(attack: Attack) -> str:
    """What distinguishes an attack from others, as text that is the same in every process."""
    options = sorted(
        (name, getattr(value, "__qualname__", repr(value)))
        for name, value in attack.options.items()
    )
    return (
        f"{attack.name} targeted={attack.targeted} restarts={attack.num_restarts} "
        f"exhaustive={attack.exhaustive} {options}"
    )


def _named(name, num_classes, restarts, budget, notes):
    if name not in NAMES:
        raise ValueError(
            f"attacks_to_run: {name!r} is unknown; allowed are {', '.join(NAMES)}, or an Attack"
        )
    if budget.randomized and name not in GRADIENT_ONLY:
        raise ValueError(f"{name} does not attack randomised models; use version='rand'")
    if name == "square":
        options = {"num_queries": budget.num_queries}
        return Attack(name, square, options=options, cost=budget.num_queries)
    cost = GRADIENT_COST * budget.num_steps
    if name == "fab":
        options = {"num_steps": budget.num_steps, "num_restarts": restarts}
        return Attack(name, fab, options=options, cost=restarts * num_classes * cost)
    if name == "fab-t":
        options = {"num_steps": budget.num_steps}
        return Attack(name, fab, targeted=True, options=options, cost=cost)
    options = {
        "num_steps": budget.num_steps,
        "randomized": budget.randomized,
        "gradient_draws": budget.gradient_draws,
    }
    if budget.randomized:
        cost *= budget.gradient_draws

    def apgd_attack(loss, targeted=False, num_restarts=1):
        return Attack(name, partial(apgd, loss=loss), targeted, num_restarts, options, cost=cost)

    if name == "apgd-ce":
        return apgd_attack("ce", num_restarts=restarts)
    if name == "apgd-dlr":
        loss = "dlr" if num_classes >= 3 else "margin"
        if loss == "margin":
            notes.append("apgd-dlr: DLR needs 3 classes, the model has 2; the margin was used")
        return apgd_attack(loss, num_restarts=restarts)
    loss = "targeted_dlr" if num_classes >= 4 else "targeted_margin"
    if loss == "targeted_margin":
        notes.append(
            f"apgd-t: targeted DLR needs 4 classes, the model has {num_classes}; "
            "the targeted margin was used"
        )
    return apgd_attack(loss, targeted=True)
