"""Adaptive attacks: every surrogate that a defence declares, and transfer from other models.

The robust accuracy of a defence is what is left after attacks that were made for it. This runs them
in AutoAttack's driver: each success is confirmed by a fresh forward pass of the model itself.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ancra_jax.attacks.adaptive.searches import SEARCHES
from ancra_jax.attacks.adaptive.surrogates import (
    LEVELS,
    Defence,
    Level,
    Surrogate,
    SurrogateAttack,
    loss_on,
)
from ancra_jax.attacks.autoattack.api import autoattack
from ancra_jax.attacks.autoattack.ensemble import GRADIENT_COST, Attack
from ancra_jax.attacks.autoattack.result import AutoAttackResult
from ancra_jax.attacks.model import AnyImages, AnyLabels, Model, as_pytree, read_outputs
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.types import Progress, print_progress
from ancra_jax.attacks.validation import check_images

TRANSFER = "A7"
"""The group of attacks from other models, the seventh of those on reverse attention."""


@dataclass(frozen=True)
class AdaptiveBudget:
    """How much a level spends.

    Attributes:
      num_steps: gradient steps of APGD and PGD.
      num_targets: most targets of a targeted attack.
      num_restarts: of an untargeted attack along gradients.
      num_queries: queries of Square.
      exhaustive: whether attacks get all examples that are classified correctly when clean, not
        just those that are still robust. Their own accuracy is known only then.
      targeted_on_all: whether that holds of targeted attacks too, which take a pass a target.
    """

    num_steps: int
    num_targets: int
    num_restarts: int
    num_queries: int
    exhaustive: bool
    targeted_on_all: bool = True


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
    *,
    epsilon: float | int,
    norm: str = "linf",
    defences: Sequence[Defence] = (),
    transfer_from: Mapping[str, Model] | None = None,
    budget: Level | AdaptiveBudget = "standard",
    key: Key[Array, ""] | None = None,
    indices: AnyLabels | None = None,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    state_path: str | os.PathLike | None = None,
    max_seconds: float | int | None = None,
    progress: Callable[[Progress], None] | None = print_progress,
) -> AutoAttackResult:
    """Attacks a model through the surrogates that its defences declare.

    The cheap attacks run first. Everything that ``autoattack`` promises of successes, randomness,
    batches and interruptions holds here.

    Args:
      model: the model itself, with nothing replaced; see ``autoattack``.
      images: clean images, pixels in [0, 1].
      labels: class numbers.
      epsilon: radius of the threat model, on the [0, 1] pixel scale.
      norm: ``'linf'`` or ``'l2'``.
      defences: what the model is known to do; without any it is attacked by transfer and by Square.
      transfer_from: other models by name. APGD on each of them is judged by ``model``, and its
        best points are where APGD on the model's own decision starts.
      budget: ``'quick'``, ``'standard'``, ``'thorough'``, or numbers of your own (which include all
        attacks).
      key: see ``autoattack``; so are the following.
      indices: data-set indices of the images.
      batch_size: rows of a batch.
      devices: batches are sharded over them.
      state_path: directory for the state of an interrupted call.
      max_seconds: stop after so many seconds.
      progress: called after every batch.

    Returns:
      The worst case over all attacks; ``records`` has what each did.

    Raises:
      ValueError: as ``autoattack``; an unknown budget.
    """
    check_images(images)
    outputs = jax.eval_shape(lambda x: read_outputs(model(x))[0], jnp.zeros(images[:1].shape))
    chosen, allowed = _budget(budget)
    attacks = plan(model, outputs.shape[-1], defences, transfer_from or {}, chosen, allowed)
    ranks = [defence.rank_by for defence in defences if defence.rank_by is not None]
    return autoattack(
        model,
        images,
        labels,
        epsilon=epsilon,
        norm=norm,
        version="custom",
        attacks_to_run=attacks,
        n_target_classes=chosen.num_targets,
        key=key,
        indices=indices,
        batch_size=batch_size,
        devices=devices,
        state_path=state_path,
        max_seconds=max_seconds,
        progress=progress,
        rank_by=ranks[0] if ranks else None,
        checks=False,
    )


def _budget(budget):
    if isinstance(budget, AdaptiveBudget):
        return budget, LEVELS
    if budget not in BUDGETS:
        raise ValueError(f"budget={budget!r}: allowed are {', '.join(map(repr, BUDGETS))}")
    return BUDGETS[budget], LEVELS[: LEVELS.index(budget) + 1]


def plan(
    model: Model,
    num_classes: int,
    defences: Sequence[Defence],
    transfer_from: Mapping[str, Model],
    budget: AdaptiveBudget,
    levels: Sequence[Level] = LEVELS,
) -> list[Attack]:
    """The attacks on a model with these defences, the cheap ones first."""
    own_margin = loss_on(model, "margin")
    decision = next((d.decision for d in defences if d.decision is not None), own_margin)
    declared: list[Surrogate | SurrogateAttack] = [a for d in defences for a in d.attacks]
    for name, forward in transfer_from.items():
        declared += _transfers(name, as_pytree(forward), decision)
    if not any(defence.attacks for defence in defences):
        declared.append(SurrogateAttack("square-margin", own_margin, search="square"))
    expanded: list[SurrogateAttack] = []
    for entry in declared:
        expanded += entry.attacks(num_classes) if isinstance(entry, Surrogate) else [entry]
    attacks = [_as_attack(entry, budget) for entry in expanded if entry.level in levels]
    return sorted(attacks, key=lambda a: a.cost * a.num_passes(budget.num_targets))


def _transfers(name, forward, decision):
    """Points that fool another model, and APGD on the model itself from there."""
    ce, margin = loss_on(forward, "ce"), loss_on(forward, "margin")
    return [
        SurrogateAttack(f"transfer-{name}-ce", ce, group=TRANSFER),
        SurrogateAttack(f"transfer-{name}-margin", margin, group=TRANSFER),
        SurrogateAttack(f"warm-{name}", decision, warm_start=ce, group=TRANSFER),
    ]


def _as_attack(entry: SurrogateAttack, budget: AdaptiveBudget) -> Attack:
    run = partial(SEARCHES[entry.search], objective=entry.objective)
    cost = GRADIENT_COST * budget.num_steps
    options, restarts = {"num_steps": budget.num_steps}, budget.num_restarts
    if entry.search == "square":
        options, cost, restarts = {"num_queries": budget.num_queries}, budget.num_queries, 1
    if entry.warm_start is not None:
        run, cost = partial(run, warm_start=entry.warm_start), 2 * cost
    return Attack(
        entry.name,
        run,
        targeted=entry.targeted,
        num_restarts=restarts,
        options=options,
        group=entry.group,
        cost=cost,
        exhaustive=budget.exhaustive and (budget.targeted_on_all or not entry.targeted),
    )
