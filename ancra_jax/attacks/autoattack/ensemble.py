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
      most_targets: passes of a targeted attack, as far as the model has so many other classes;
        ``autoattack``'s ``n_target_classes`` if None.
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
    most_targets: int | None = None

    def num_passes(self, num_targets: int) -> int:
        """Return the number of passes: one per target, or one per restart."""
        if not self.targeted:
            return self.num_restarts
        return num_targets if self.most_targets is None else min(num_targets, self.most_targets)


@dataclass(frozen=True)
class Budget:
    """How long the attacks run."""

    num_steps: int = 100  # gradient steps of APGD and FAB
    num_queries: int = 5000  # of Square
    gradient_draws: int = 20  # averaged in a step on a randomised model
    n_target_classes: int = 9  # of a targeted attack without a number of its own
    randomized: bool = False  # whether the model is called with a key

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_queries", "gradient_draws", "n_target_classes"):
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
_UNTARGETED = ("num_steps", "num_restarts")
_TARGETED = (*_UNTARGETED, "n_target_classes")
_SETTINGS: dict[str, tuple[str, ...]] = {
    "apgd-ce": _UNTARGETED,
    "apgd-dlr": _UNTARGETED,
    "apgd-t": _TARGETED,
    "fab": _UNTARGETED,
    "fab-t": _TARGETED,
    "square": ("num_queries", "num_restarts"),
}
"""The attacks that a list may name, and what may follow a name: ``'square:num_queries=100'``."""
_LOSSES = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "targeted_dlr"}


def plan(
    version: str,
    attacks_to_run: Sequence[str | Attack] | None,
    num_classes: int,
    budget: Budget,
    norm: str = "linf",
    exhaustive: bool = False,
    only: str | None = None,
) -> list[Attack]:
    """Return the attacks of a version in their order; refuse settings that do not go together.

    ``only`` names the one that is wanted. As published, ``'standard'`` has five restarts of apgd-ce
    and five targets of apgd-t under L1, and ``'plus'`` five restarts of the untargeted attacks.
    """
    check_one_of(version, "version", VERSIONS)
    if isinstance(attacks_to_run, str) or not isinstance(attacks_to_run, Sequence | None):
        raise TypeError(f"attacks_to_run={shown(attacks_to_run)}: expected a list")
    if version == "custom" and not attacks_to_run:
        raise ValueError("version='custom' needs attacks_to_run")
    if version != "custom" and attacks_to_run is not None:
        raise ValueError(f"attacks_to_run needs version='custom', not version={version!r}")
    usual: dict[str, dict[str, int]] = {}
    if version == "plus":
        usual = {name: {"num_restarts": 5} for name in ("apgd-ce", "apgd-dlr", "fab")}
    elif version == "standard" and norm == "l1":
        targets = min(5, budget.n_target_classes)
        usual = {"apgd-ce": {"num_restarts": 5}, "apgd-t": {"n_target_classes": targets}}
    attacks = []
    for entry in attacks_to_run or VERSIONS[version]:
        if isinstance(entry, Attack):
            attack = entry
        else:
            name, settings = _read(entry)
            if budget.randomized and not name.startswith("apgd"):
                raise ValueError(f"{name} does not attack randomised models; use version='rand'")
            attack = _named(name, num_classes, budget, **usual.get(name, {}) | settings)
            attack = replace(attack, name=str(entry))
        attacks.append(replace(attack, exhaustive=exhaustive or attack.exhaustive))
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks_to_run={names}: every name may occur once")
    if only is not None:
        check_one_of(only, "only", names)
    return [attack for attack in attacks if only in (None, attack.name)]


def _read(entry: Any) -> tuple[str, dict[str, int]]:
    """Return the attack and the settings that a list names: ``'apgd-ce:num_steps=50'``."""
    name, *settings = entry.split(":") if isinstance(entry, str) else [""]
    if name not in _SETTINGS:
        allowed = ", ".join(_SETTINGS)
        raise ValueError(f"attacks_to_run: {shown(entry)} is none of {allowed}, and no Attack")
    given = dict(setting.partition("=")[::2] for setting in settings)
    if any(key not in _SETTINGS[name] or not value.isdecimal() for key, value in given.items()):
        allowed = ", ".join(f":{key}=NUMBER" for key in _SETTINGS[name])
        raise ValueError(f"attacks_to_run: {shown(entry)}: allowed after {name} are {allowed}")
    return name, {key: as_whole(int(value), f"{name}:{key}") for key, value in given.items()}


def describe(attack: Attack) -> str:
    """Return what distinguishes an attack, as text that is the same in every process."""
    options = sorted(
        (name, getattr(value, "__qualname__", repr(value)))
        for name, value in attack.options.items()
    )
    return (
        f"{attack.name} targeted={attack.targeted} restarts={attack.num_restarts} "
        f"exhaustive={attack.exhaustive} {options}"
        + (f" targets={attack.most_targets}" if attack.most_targets else "")
    )


def loss_along_dlr(attacks: Sequence[Attack]) -> str | None:
    """Return the loss of the first APGD of a list that does not ascend the cross-entropy."""
    runs = [attack.run for attack in attacks]
    losses = [run.keywords["loss"] for run in runs if isinstance(run, partial) and run.func is apgd]
    return next((loss for loss in losses if loss != "ce"), None)


def fitting_loss(loss: str, num_classes: int) -> str:
    """Return the loss, or the margin in its place if DLR needs more classes than there are."""
    least = {"dlr": 3, "targeted_dlr": 4}.get(loss, 2)
    return loss if num_classes >= least else loss.replace("dlr", "margin")


def _named(
    name: str,
    num_classes: int,
    budget: Budget,
    num_steps: int | None = None,
    num_queries: int | None = None,
    num_restarts: int = 1,
    n_target_classes: int | None = None,
) -> Attack:
    """Return an attack by its name, with the settings of its own in place of the budget's."""
    targeted = name.endswith("-t")
    if name == "square":
        queries = num_queries or budget.num_queries
        options = {"num_queries": queries}
        return Attack(name, square, num_restarts=num_restarts, options=options, cost=queries)
    options = {"num_steps": num_steps or budget.num_steps}
    cost = GRADIENT_COST * options["num_steps"]
    inside = {"num_restarts": num_restarts}  # within one pass
    if targeted or name == "fab":
        cost *= num_restarts
    if name == "fab":
        return Attack(name, fab, options=options | inside, cost=num_classes * cost)
    passes: dict[str, Any] = inside
    if targeted:
        options |= inside if num_restarts > 1 else {}
        passes = {"targeted": True, "most_targets": n_target_classes}
    if name == "fab-t":
        return Attack(name, fab, options=options, cost=cost, **passes)
    loss = _LOSSES[name]
    fitting = fitting_loss(loss, num_classes)
    replaced = f"{name}: {num_classes} classes are too few for {loss}; {fitting} was used"
    return Attack(
        name,
        partial(apgd, loss=fitting),
        options=options
        | {"randomized": budget.randomized, "gradient_draws": budget.gradient_draws},
        cost=cost * (budget.gradient_draws if budget.randomized else 1),
        note="" if fitting == loss else replaced,
        **passes,
    )
