"""The attacks that AutoAttack is made of, and the versions that list them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ancra_jax.attacks.apgd import apgd
from ancra_jax.attacks.fab import fab
from ancra_jax.attacks.square import square
from ancra_jax.attacks.types import AttackResult
from ancra_jax.attacks.validation import check_positive_int


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

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_queries", "gradient_draws"):
            check_positive_int(getattr(self, name), name)


GRADIENT_COST = 3.0
"""Forward passes that a value with its input gradient takes as much time as."""

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


def plan(
    version: str,
    attacks_to_run: Sequence[str | Attack] | None,
    num_classes: int,
    budget: Budget,
    exhaustive: bool = False,
) -> list[Attack]:
    """Return the attacks of a version in their order.

    Raises:
      ValueError: an unknown version or attack, or settings that do not go together.
    """
    if version not in (*VERSIONS, "custom"):
        allowed = ", ".join(map(repr, [*VERSIONS, "custom"]))
        raise ValueError(f"version={version!r}: allowed are {allowed}")
    if version == "custom" and not attacks_to_run:
        raise ValueError("version='custom' needs attacks_to_run")
    if version != "custom" and attacks_to_run is not None:
        raise ValueError(f"attacks_to_run goes with version='custom', not with version={version!r}")
    restarts = 5 if version == "plus" else 1
    attacks = [
        entry if isinstance(entry, Attack) else _named(entry, num_classes, restarts, budget)
        for entry in attacks_to_run or VERSIONS[version]
    ]
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks_to_run={names}: every name may occur once")
    return [replace(a, exhaustive=exhaustive or a.exhaustive) for a in attacks]


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


_LEAST_CLASSES = {"dlr": 3, "targeted_dlr": 4}


def fitting_loss(loss: str, num_classes: int) -> str:
    """Return the loss, or the margin in its place if DLR needs more classes than there are."""
    return loss if num_classes >= _LEAST_CLASSES.get(loss, 2) else loss.replace("dlr", "margin")


def _named(name: str, num_classes: int, restarts: int, budget: Budget) -> Attack:
    if name not in _BUILDERS:
        allowed = ", ".join(_BUILDERS)
        raise ValueError(
            f"attacks_to_run: {name!r} is unknown; allowed are {allowed}, or an Attack"
        )
    if budget.randomized and not name.startswith("apgd"):
        raise ValueError(f"{name} does not attack randomised models; use version='rand'")
    return _BUILDERS[name](name, num_classes, restarts, budget)


def _apgd(name: str, num_classes: int, restarts: int, budget: Budget, *, loss: str) -> Attack:
    fitting = fitting_loss(loss, num_classes)
    note = ""
    if fitting != loss:
        note = (
            f"{name}: {loss.replace('_dlr', ' DLR').replace('dlr', 'DLR')} needs "
            f"{_LEAST_CLASSES[loss]} classes, the model has {num_classes}; the "
            f"{fitting.replace('_', ' ')} was used"
        )
    options = {
        "num_steps": budget.num_steps,
        "randomized": budget.randomized,
        "gradient_draws": budget.gradient_draws,
    }
    targeted = loss.startswith("targeted")
    cost = GRADIENT_COST * budget.num_steps * (budget.gradient_draws if budget.randomized else 1)
    run = partial(apgd, loss=fitting)
    return Attack(name, run, targeted, 1 if targeted else restarts, options, cost=cost, note=note)


def _fab(name: str, num_classes: int, restarts: int, budget: Budget) -> Attack:
    options = {"num_steps": budget.num_steps, "num_restarts": restarts}
    cost = restarts * num_classes * GRADIENT_COST * budget.num_steps
    return Attack(name, fab, options=options, cost=cost)


def _targeted_fab(name: str, num_classes: int, restarts: int, budget: Budget) -> Attack:
    options = {"num_steps": budget.num_steps}
    cost = GRADIENT_COST * budget.num_steps
    return Attack(name, fab, targeted=True, options=options, cost=cost)


def _square(name: str, num_classes: int, restarts: int, budget: Budget) -> Attack:
    options = {"num_queries": budget.num_queries}
    return Attack(name, square, options=options, cost=budget.num_queries)


_BUILDERS: dict[str, Callable[[str, int, int, Budget], Attack]] = {
    "apgd-ce": partial(_apgd, loss="ce"),
    "apgd-dlr": partial(_apgd, loss="dlr"),
    "apgd-t": partial(_apgd, loss="targeted_dlr"),
    "fab": _fab,
    "fab-t": _targeted_fab,
    "square": _square,
}
