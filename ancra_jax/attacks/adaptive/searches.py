"""Searches along a surrogate's objective, as the driver of AutoAttack calls them."""

from collections.abc import Callable

from jaxtyping import Array, Bool, Int, Key

from ancra_jax.attacks.adaptive.surrogates import ObjectiveOf
from ancra_jax.attacks.apgd import apgd, run_apgd, surface_start
from ancra_jax.attacks.gradients import evaluator
from ancra_jax.attacks.model import Images, Model, example_keys
from ancra_jax.attacks.pgd import pgd
from ancra_jax.attacks.square import square
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.attacks.types import AttackResult
from ancra_jax.ops.images import select
from ancra_jax.ops.per_device import where_the_batch_is


def _apgd(
    logits_fn: Model,
    images: Images,
    labels: Int[Array, "batch"],
    threat_model: ThreatModel,
    *,
    objective: ObjectiveOf,
    num_steps: int,
    key: Key[Array, ""],
    indices: Int[Array, "batch"],
    active: Bool[Array, "batch"],
    targets: Int[Array, "batch"] | None = None,
    warm_start: ObjectiveOf | None = None,
) -> AttackResult:
    """APGD along the objective, after APGD along ``warm_start`` if there is one."""
    if warm_start is None:
        before, start = None, None
    else:
        start = surface_start(threat_model, example_keys(key, indices), images)
        judged = evaluator(_on_batch(warm_start, labels, targets), logits_fn)
        before = run_apgd(judged, start, images, labels, threat_model, num_steps=num_steps)
        start = before.best_images
    found = apgd(
        logits_fn,
        images,
        labels,
        threat_model,
        loss=_on_batch(objective, labels, targets),
        key=key,
        indices=indices,
        active=active,
        num_steps=num_steps,
        start=start,
    )
    if before is None:
        return found
    earlier = before.fooled & active
    return AttackResult(
        images=select(earlier, before.adversarial, found.images),
        success=found.success | earlier,
        best_loss=found.best_loss,
        queries=2 * found.queries,
    )


def _pgd(
    logits_fn: Model,
    images: Images,
    labels: Int[Array, "batch"],
    threat_model: ThreatModel,
    *,
    objective: ObjectiveOf,
    num_steps: int,
    key: Key[Array, ""],
    indices: Int[Array, "batch"],
    active: Bool[Array, "batch"],
    targets: Int[Array, "batch"] | None = None,
) -> AttackResult:
    """PGD along the objective, from a random start in steps of a quarter epsilon."""
    return pgd(
        logits_fn,
        images,
        labels,
        threat_model,
        loss=_on_batch(objective, labels, targets),
        step_size=threat_model.epsilon / 4,
        num_steps=num_steps,
        key=key,
        indices=indices,
        active=active,
    )


def _square(
    logits_fn: Model,
    images: Images,
    labels: Int[Array, "batch"],
    threat_model: ThreatModel,
    *,
    objective: ObjectiveOf,
    num_queries: int,
    key: Key[Array, ""],
    indices: Int[Array, "batch"],
    active: Bool[Array, "batch"],
    targets: Int[Array, "batch"] | None = None,
) -> AttackResult:
    """Square along the objective."""
    return square(
        logits_fn,
        images,
        labels,
        threat_model,
        loss=_on_batch(objective, labels, targets),
        num_queries=num_queries,
        key=key,
        indices=indices,
        active=active,
    )


SEARCHES: dict[str, Callable[..., AttackResult]] = {"apgd": _apgd, "pgd": _pgd, "square": _square}


def _on_batch(objective, labels, targets):
    return where_the_batch_is(objective(labels, targets), labels)
