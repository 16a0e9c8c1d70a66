"""Adaptive attacks: every surrogate that a defence declares, and transfer from other models.

The robust accuracy of a defence is what is left after attacks that were made for it. A defence with
a part that no gradient passes (an argmax, a rounding) misleads attacks on its own logits. It can be
attacked through something that resembles it and has a gradient: a surrogate. AutoAttack's driver
runs these attacks, and a success counts only if a fresh forward pass of the model itself, with
nothing replaced, confirms it.

References:
  Athalye, Carlini & Wagner, Obfuscated gradients give a false sense of security, ICML 2018 (BPDA).
  Tramer, Carlini, Brendel & Madry, On adaptive attacks to adversarial example defenses, NeurIPS
  2020.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax

from ancra_jax.attacks.apgd import apgd, run_apgd, surface_start
from ancra_jax.attacks.arguments import (
    AnyKey,
    Number,
    as_flag,
    as_images,
    as_whole,
    check_callable,
    check_list,
    check_one_of,
    shown,
)
from ancra_jax.attacks.autoattack.api import autoattack
from ancra_jax.attacks.autoattack.ensemble import GRADIENT_COST, Attack, fitting_loss
from ancra_jax.attacks.autoattack.result import AutoAttackResult
from ancra_jax.attacks.job import Progress, print_progress
from ancra_jax.attacks.model import Model, as_pytree, example_keys, forward
from ancra_jax.attacks.objectives import LOSSES, TARGETED_LOSSES, Objective, evaluator
from ancra_jax.attacks.pgd import pgd
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.square import square
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.attacks.validation import AttackResult
from ancra_jax.ops.images import AnyImages, AnyLabels, Images, Labels
from ancra_jax.ops.per_device import where_the_batch_is
from ancra_jax.ops.pytree import select

TRANSFER = "A7"
"""The group of attacks from other models, the seventh of those on reverse attention."""

ObjectiveOf = Callable[[Any, Any], Objective]
"""``(labels, targets) -> objective`` of a batch; the targets are None in an untargeted attack."""

Search = Literal["apgd", "pgd", "square"]
SEARCHES: tuple[Search, ...] = ("apgd", "pgd", "square")

Level = Literal["quick", "standard", "thorough"]
LEVELS: tuple[Level, ...] = ("quick", "standard", "thorough")


@dataclass(frozen=True)
class SurrogateAttack:
    """One search along one objective; every iterate is judged by the model itself.

    Attributes:
      name: in the results.
      objective: what to ascend on a batch, a callable ``(labels, targets) -> objective``. Attacks
        whose objectives are pytrees of one structure share a compiled program.
      targeted: whether the objective aims at a class; there is a pass for each target then.
      search: ``'apgd'``; ``'pgd'``, whose last iterate counts; or ``'square'``, which asks the
        objective for values only.
      warm_start: an objective that APGD ascends first, from whose best point it goes on.
      group: of attacks that belong together.
      level: the smallest budget that includes the attack.
    """

    name: str
    objective: ObjectiveOf
    targeted: bool = False
    search: Search = "apgd"
    warm_start: ObjectiveOf | None = None
    group: str = ""
    level: Level = "quick"

    def __post_init__(self) -> None:
        expected = "(labels, targets) -> objective"
        check_callable(self.objective, "objective", expected)
        as_flag(self.targeted, "targeted")
        check_one_of(self.search, "search", SEARCHES)
        check_one_of(self.level, "level", LEVELS)
        if self.warm_start is not None:
            check_callable(self.warm_start, "warm_start", f"{expected}, or None")
            check_one_of(self.search, "search with a warm_start", ("apgd", "pgd"))


@dataclass(frozen=True)
class Surrogate:
    """A differentiable stand-in for a model.

    Attributes:
      name: in the results.
      forward: images to logits, or to an object with ``logits``; a callable pytree, so that one
        program serves surrogates that differ in their arrays alone.
      losses: names of ``apgd``'s losses; by default cross-entropy and, as far as the number of
        classes allows, both kinds of DLR.
      group: see ``SurrogateAttack``.
      level: likewise.
    """

    name: str
    forward: Model
    losses: tuple[str, ...] = ()
    group: str = ""
    level: Level = "quick"

    def __post_init__(self) -> None:
        check_callable(self.forward, "forward", "a callable from images to logits")
        check_list(self.losses, "losses", str, "names")
        for loss in self.losses:
            check_one_of(loss, "losses", [*LOSSES, *TARGETED_LOSSES])
        check_one_of(self.level, "level", LEVELS)

    def attacks(self, num_classes: int) -> list[SurrogateAttack]:
        """Return an attack for each loss."""
        fitting = [fitting_loss(loss, num_classes) for loss in ("ce", "dlr", "targeted_dlr")]
        return [
            SurrogateAttack(
                f"{self.name}-{loss}",
                loss_on(self.forward, loss),
                targeted=loss in TARGETED_LOSSES,
                group=self.group,
                level=self.level,
            )
            for loss in self.losses or fitting
        ]


@dataclass(frozen=True)
class Defence:
    """The attacks that see through a defence.

    Attributes:
      name: of the defence.
      attacks: surrogates, or attacks on them.
      decision: what decides the model's prediction and has a gradient; warm starts go on along it.
        The margin of the model's own logits if None.
      rank_by: a model whose natural logits rank the targets; the model itself if None.
      statistics: ``(images, adversarial, labels, broken, placement)`` to named numbers that say how
        the part without a gradient behaves; for the result.
    """

    name: str
    attacks: Sequence[Surrogate | SurrogateAttack]
    decision: ObjectiveOf | None = None
    rank_by: Model | None = None
    statistics: Callable[..., dict[str, float | None]] | None = None

    def __post_init__(self) -> None:
        kinds = (Surrogate, SurrogateAttack)
        check_list(self.attacks, "attacks", kinds, "attacks.Surrogate and attacks.SurrogateAttack")


@dataclass(frozen=True)
class AdaptiveBudget:
    """How much a level spends.

    Attributes:
      num_steps: gradient steps of APGD and PGD.
      num_targets: most targets of a targeted attack.
      num_restarts: of an untargeted attack along gradients.
      num_queries: queries of Square.
      exhaustive: whether attacks get all examples that are classified correctly without an attack,
        not just those that are still robust. Their own accuracy is known only then.
      targeted_on_all: whether that holds of targeted attacks too, which take a pass a target.
    """

    num_steps: int
    num_targets: int
    num_restarts: int
    num_queries: int
    exhaustive: bool
    targeted_on_all: bool = True

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_targets", "num_restarts", "num_queries"):
            object.__setattr__(self, name, as_whole(getattr(self, name), name))
        for name in ("exhaustive", "targeted_on_all"):
            as_flag(getattr(self, name), name)


BUDGETS: dict[Level, AdaptiveBudget] = {
    "quick": AdaptiveBudget(20, 3, 1, 200, False),
    "standard": AdaptiveBudget(50, 9, 1, 500, True, targeted_on_all=False),
    "thorough": AdaptiveBudget(100, 9, 5, 5000, True),
}


@explains_old_calls
def adaptive(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel | None = None,
    *,
    epsilon: Number | None = None,
    norm: str | Number = "linf",
    defences: Sequence[Defence] | None = None,
    transfer_from: Mapping[str, Model] | None = None,
    budget: Level | AdaptiveBudget = "standard",
    key: AnyKey | None = None,
    indices: AnyLabels | None = None,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    search_precision: str = "auto",
    state_path: str | os.PathLike | None = None,
    max_seconds: float | int | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
) -> AutoAttackResult:
    """Attack a model through the surrogates that its defences declare.

    The cheap attacks run first. Everything that ``autoattack`` promises of successes, randomness,
    batches and interruptions holds here; arguments not named here are as there.

    Args:
      model: the model itself, with nothing replaced.
      defences: what the model is known to do; if None the model's own attribute ``defences``. If
        there are none it is attacked by transfer and by Square.
      transfer_from: other models by name. APGD on each of them is judged by ``model``, and its best
        points are where APGD on the model's own decision starts.
      budget: ``'quick'``, ``'standard'``, ``'thorough'``, or numbers of your own (which include all
        attacks).

    Returns:
      The worst case over all attacks; ``records`` has what each did.

    Raises:
      ValueError: as ``autoattack``; an unknown budget.
    """
    natural = as_images(images)
    if isinstance(budget, AdaptiveBudget):
        chosen, levels = budget, LEVELS
    else:
        check_one_of(budget, "budget", BUDGETS)
        chosen, levels = BUDGETS[budget], LEVELS[: LEVELS.index(budget) + 1]
    if defences is None:
        defences = getattr(model, "defences", ())
    check_list(defences, "defences", Defence, "attacks.Defence")
    if not isinstance(transfer_from, Mapping | None):
        raise TypeError(f"transfer_from={shown(transfer_from)}: expected models by name")
    logits = jax.eval_shape(forward, as_pytree(model), natural[:1])
    attacks = plan(model, logits.shape[-1], defences, transfer_from or {}, chosen, levels)
    if not attacks:
        raise ValueError(
            f"budget={shown(budget)}: the defences declare attacks of higher ones only"
        )
    return autoattack(
        model,
        images,
        labels,
        threat_model,
        epsilon=epsilon,
        norm=norm,
        version="custom",
        attacks_to_run=attacks,
        n_target_classes=chosen.num_targets,
        key=key,
        indices=indices,
        batch_size=batch_size,
        devices=devices,
        search_precision=search_precision,
        state_path=state_path,
        max_seconds=max_seconds,
        progress=progress,
        rank_by=next((d.rank_by for d in defences if d.rank_by is not None), None),
        checks=False,
    )


def plan(
    model: Model,
    num_classes: int,
    defences: Sequence[Defence],
    transfer_from: Mapping[str, Model],
    budget: AdaptiveBudget,
    levels: Sequence[Level] = LEVELS,
) -> list[Attack]:
    """Return the attacks on a model with these defences, the cheap ones first."""
    own_margin = loss_on(model, "margin")
    decision = next((d.decision for d in defences if d.decision is not None), own_margin)
    declared: list[SurrogateAttack] = []
    for entry in (entry for defence in defences for entry in defence.attacks):
        declared += entry.attacks(num_classes) if isinstance(entry, Surrogate) else [entry]
    transferred = partial(SurrogateAttack, group=TRANSFER)
    for name, other in transfer_from.items():
        other = as_pytree(other, f"transfer_from[{name!r}]")
        along = {loss: loss_on(other, loss) for loss in ("ce", "margin")}
        declared += [transferred(f"transfer-{name}-{loss}", along[loss]) for loss in along]
        declared.append(transferred(f"warm-{name}", decision, warm_start=along["ce"]))
    if not any(defence.attacks for defence in defences):
        declared.append(SurrogateAttack("square-margin", own_margin, search="square"))
    attacks = [_as_attack(entry, budget) for entry in declared if entry.level in levels]
    return sorted(attacks, key=lambda a: a.cost * a.num_passes(budget.num_targets))


def _as_attack(entry: SurrogateAttack, budget: AdaptiveBudget) -> Attack:
    blind = entry.search == "square"  # to gradients
    steps = budget.num_steps * (1 if entry.warm_start is None else 2)
    return Attack(
        entry.name,
        partial(_search, entry),
        targeted=entry.targeted,
        num_restarts=1 if blind else budget.num_restarts,
        options={"num_queries": budget.num_queries} if blind else {"num_steps": budget.num_steps},
        group=entry.group,
        cost=budget.num_queries if blind else GRADIENT_COST * steps,
        exhaustive=budget.exhaustive and (budget.targeted_on_all or not entry.targeted),
    )


def _search(
    entry: SurrogateAttack,
    model: Model,
    images: Images,
    labels: Labels,
    threat_model: ThreatModel,
    *,
    targets: Labels | None = None,
    **common: Any,
) -> AttackResult:
    """Search along the objective, after APGD along ``warm_start`` if there is one.

    ``common`` is what AutoAttack's driver gives every attack, and the number of steps or queries.
    """

    def on_batch(objective_of: ObjectiveOf) -> Objective:
        return where_the_batch_is(objective_of(labels, targets), labels)

    searches: dict[str, Callable[..., AttackResult]] = {
        "apgd": apgd,
        "pgd": partial(pgd, step_size=threat_model.epsilon / 4),
        "square": square,
    }
    common["loss"] = on_batch(entry.objective)
    run = partial(searches[entry.search], model, images, labels, threat_model, **common)
    if entry.warm_start is None:
        return run()
    num_steps = common["num_steps"]
    start = surface_start(threat_model, example_keys(common["key"], common["indices"]), images)
    evaluate = evaluator(on_batch(entry.warm_start), model)
    before = run_apgd(evaluate, start, images, labels, threat_model, num_steps=num_steps)
    found = run(start=before.best_images)
    earlier = before.fooled & common["active"]
    return found._replace(
        images=select(earlier, before.adversarial, found.images),
        success=found.success | earlier,
        queries=2 * found.queries,
    )


def _untargeted(loss: str, forward: Model, labels: Labels, _: Labels | None) -> Objective:
    return LOSSES[loss](forward, labels)


def loss_on(forward: Model, loss: str) -> ObjectiveOf:
    """Return one of ``apgd``'s named losses on the logits of a model of one's own."""
    if loss in TARGETED_LOSSES:
        return partial(TARGETED_LOSSES[loss], forward)
    if loss in LOSSES:
        return partial(_untargeted, loss, forward)
    raise ValueError(f"loss={loss!r}: allowed are {', '.join([*LOSSES, *TARGETED_LOSSES])}")
