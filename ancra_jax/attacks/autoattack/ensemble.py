"""The attacks that AutoAttack is made of, and the versions that list them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ancra_jax.attacks.apgd import apgd
from ancra_jax.attacks.arguments import as_flag, as_whole, check_one_of, shown
from ancra_jax.attacks.fab import fab
from ancra_jax.attacks.square import square
from ancra_jax.attacks.validation import AttackResult


@dataclass(frozen=True)
class Attack:
    """One attack of a list.

    It runs in passes: one per target if it is targeted, else one per restart. Examples that a pass
    broke skip the later ones.

    Attributes:
      name: recorded for the examples it breaks.
      run: ``run(model, images, labels, threat_model, *, key, indices, active)``, with ``targets``
        too if targeted, to an ``AttackResult``.
      targeted: whether it aims at a class; the targets are the classes that the natural logits rank
        second, third ...
      num_restarts: passes of an untargeted attack, each with its own randomness.
      options: further keyword arguments of ``run``.
      group: of attacks that belong together, for the reader of the result.
      cost: forward passes that a pass spends on an example, roughly; the estimate of the remaining
        time is made of it.
      exhaustive: whether it gets all examples that are classified correctly without an attack, not
        just those that are still robust. Its own accuracy is known only then.
      note: a warning for the result, such as how the attack differs from what its name promises.
    """

    name: str
    run: Callable[..., AttackResult]
    targeted: bool = False
    num_restarts: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    cost: float | int = 1
    exhaustive: bool = False
    note: str = ""

    def num_passes(self, num_targets: int) -> int:
        """Return the number of passes: one per target, or one per restart."""
        return num_targets if self.targeted else self.num_restarts


@dataclass(frozen=True)
class Budget:
    """How long the attacks run."""

    num_steps: int = 100  # gradient steps of APGD and FAB
    num_queries: int = 5000  # of Square
    gradient_draws: int = 20  # averaged in a step on a randomised model
    randomized: bool = False  # whether the model is called with a key

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_queries", "gradient_draws"):
            object.__setattr__(self, name, as_whole(getattr(self, name), name))
        as_flag(self.randomized, "randomized")


GRADIENT_COST = 3.0
"""Forward passes that take as long as a value with its input gradient."""

VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),  # whatever the caller lists
}


def plan(
    version: str,
    attacks_to_run: Sequence[str | Attack] | None,
    num_classes: int,
    budget: Budget,
    exhaustive: bool = False,
) -> list[Attack]:
    """Return the attacks of a version in their order; refuse settings that do not go together."""
    check_one_of(version, "version", VERSIONS)
    if isinstance(attacks_to_run, str) or not isinstance(attacks_to_run, Sequence | None):
        raise TypeError(f"attacks_to_run={shown(attacks_to_run)}: expected a list")
    if version == "custom" and not attacks_to_run:
        raise ValueError("version='custom' needs attacks_to_run")
    if version != "custom" and attacks_to_run is not None:
        raise ValueError(f"attacks_to_run needs version='custom', not version={version!r}")
    named = _named(num_classes, budget, num_restarts=5 if version == "plus" else 1)
    attacks = []
    for entry in attacks_to_run or VERSIONS[version]:
        if not isinstance(entry, Attack) and (not isinstance(entry, str) or entry not in named):
            allowed = ", ".join(named)
            raise ValueError(f"attacks_to_run: {shown(entry)} is none of {allowed}, and no Attack")
        if isinstance(entry, str) and budget.randomized and not entry.startswith("apgd"):
            raise ValueError(f"{entry} does not attack randomised models; use version='rand'")
        attack = named[entry] if isinstance(entry, str) else entry
        attacks.append(replace(attack, exhaustive=exhaustive or attack.exhaustive))
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks_to_run={names}: every name may occur once")
    return attacks


def describe(attack: Attack) -> str:
    """Return what distinguishes an attack, as text that is the same in every process."""
    options = sorted(
        (name, getattr(value, "__qualname__", repr(value)))
        for name, value in attack.options.items()
    )
    return (
        f"{attack.name} targeted={attack.targeted} restarts={attack.num_restarts} "
        f"exhaustive={attack.exhaustive} {options}"
    )


def fitting_loss(loss: str, num_classes: int) -> str:
    """Return the loss, or the margin in its place if DLR needs more classes than there are."""
    least = {"dlr": 3, "targeted_dlr": 4}.get(loss, 2)
    return loss if num_classes >= least else loss.replace("dlr", "margin")


def _named(num_classes: int, budget: Budget, num_restarts: int) -> dict[str, Attack]:
    """Return the attacks that a list may name."""
    cost = GRADIENT_COST * budget.num_steps
    steps = {"num_steps": budget.num_steps}
    queries = {"num_queries": budget.num_queries}
    restarts = {"num_restarts": num_restarts}
    draws = {"randomized": budget.randomized, "gradient_draws": budget.gradient_draws}

    def along(name: str, loss: str, **passes: Any) -> Attack:
        fitting = fitting_loss(loss, num_classes)
        replaced = f"{name}: {num_classes} classes are too few for {loss}; {fitting} was used"
        return Attack(
            name,
            partial(apgd, loss=fitting),
            options=steps | draws,
            cost=cost * (budget.gradient_draws if budget.randomized else 1),
            note="" if fitting == loss else replaced,
            **passes,
        )

    attacks = [
        along("apgd-ce", "ce", **restarts),
        along("apgd-dlr", "dlr", **restarts),
        along("apgd-t", "targeted_dlr", targeted=True),
        Attack("fab", fab, options=steps | restarts, cost=num_restarts * num_classes * cost),
        Attack("fab-t", fab, targeted=True, options=steps, cost=cost),
        Attack("square", square, options=queries, cost=budget.num_queries),
    ]
    return {attack.name: attack for attack in attacks}
