"""Auto-PGD: projected gradient ascent with momentum that halves its own step size.

References:
  Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
  parameter-free attacks, ICML 2020, section 3. Details follow the authors' published code.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from ancra_jax.attacks import objectives
from ancra_jax.attacks.apgd_loop import run_apgd, wide
from ancra_jax.attacks.gradients import RandomizedEvaluator, evaluator
from ancra_jax.attacks.loop import LoopKind
from ancra_jax.attacks.model import (
    AnyImages,
    AnyLabels,
    Images,
    LogitsFn,
    as_pytree,
    example_keys,
    fold_each,
)
from ancra_jax.attacks.objectives import LogitsObjective, Objective
from ancra_jax.attacks.results import AttackResult
from ancra_jax.attacks.threat_models import ThreatModel, at_distance
from ancra_jax.attacks.validation import check_images, check_labels, check_positive_int

LOSSES = {
    "ce": objectives.cross_entropy,
    "dlr": objectives.dlr,
    "margin": objectives.margin,
}
TARGETED_LOSSES = {
    "targeted_dlr": objectives.targeted_dlr,
    "targeted_margin": objectives.targeted_margin,
}


def apgd(
    logits_fn: LogitsFn,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    loss: str | Objective = "ce",
    targets: AnyLabels | None = None,
    key: Key[Array, ""] | None = None,
    indices: AnyLabels | None = None,
    num_steps: int = 100,
    num_restarts: int = 1,
    rho: float = 0.75,
    start: AnyImages | None = None,
    active: Bool[Array, "batch"] | None = None,
    randomized: bool = False,
    gradient_draws: int = 1,
    loop: LoopKind = "auto",
) -> AttackResult:
    """Runs Auto-PGD.

    Args:
      logits_fn: the model, see ``attacks.model.LogitsFn``; the final logits decide on success.
      images: natural images, pixels in [0, 1].
      labels: class numbers. Any other prediction is a success, with targets as well.
      threat_model: ``Linf(epsilon)`` or ``L2(epsilon)``.
      loss: ``'ce'``, ``'dlr'``, ``'margin'``; with targets ``'targeted_dlr'``,
        ``'targeted_margin'``; or any objective ``images -> [batch]`` to ascend.
      targets: class numbers for the targeted losses.
      key: source of the random starts; may be left out if ``start`` is given.
      indices: data-set indices, from which (and from ``key``) every example's randomness is
        derived; 0, 1, 2 ... by default.
      num_steps: gradient steps of a run.
      num_restarts: runs; the examples fooled by one keep its result.
      rho: the step size is halved if the objective rose in at most this share of a window's steps.
      start: where the first run starts; at random on the ball's surface if None.
      active: examples to attack; the others are returned as they are.
      randomized: the model draws its own randomness and is called as
        ``logits_fn(images, key=key)``, one example and key at a time (vectorised).
      gradient_draws: gradients averaged in a step of a randomised model (EOT).
      loop: see ``attacks.loop.iterate``.

    Returns:
      Adversarial images where the attack succeeded; ``best_loss`` is the objective's maximum.

    Raises:
      ValueError: bad images, labels, targets or settings.
    """
    check_images(images)
    check_labels(labels, len(images))
    check_positive_int(num_steps, "num_steps")
    check_positive_int(num_restarts, "num_restarts")
    check_positive_int(gradient_draws, "gradient_draws")
    if key is None and (start is None or num_restarts > 1 or randomized):
        raise ValueError("key=None: random starts and randomised models need a key")
    model = as_pytree(logits_fn)
    natural = jnp.asarray(images)
    labels = jnp.asarray(labels, jnp.int32)
    batch = len(natural)
    active = jnp.ones(batch, bool) if active is None else jnp.asarray(active)
    numbers = jnp.arange(batch) if indices is None else jnp.asarray(indices)
    keys = example_keys(jax.random.key(0) if key is None else key, numbers)
    objective = _objective(loss, model, labels, targets)
    if randomized and not isinstance(objective, LogitsObjective):
        raise ValueError(f"loss={loss!r}: a randomised model needs one of the named losses")
    draws = gradient_draws if randomized else 1

    result = AttackResult(
        images=natural,
        success=jnp.zeros(batch, bool),
        best_loss=jnp.full(batch, -jnp.inf),
        queries=jnp.where(active, num_restarts * draws * (num_steps + 1), 0),
    )
    for restart in range(num_restarts):
        run_keys = fold_each(keys, restart)
        first = start if restart == 0 and start is not None else None
        if first is None:
            first = surface_start(threat_model, run_keys, natural)
        evaluate = (
            RandomizedEvaluator(objective, fold_each(run_keys, 0), draws)
            if randomized
            else evaluator(objective, model)
        )
        state = run_apgd(
            evaluate,
            jnp.asarray(first),
            natural,
            labels,
            threat_model,
            num_steps=num_steps,
            rho=rho,
            loop=loop,
        )
        found = state.fooled & active & ~result.success
        result = result._replace(
            images=jnp.where(wide(found), state.adversarial, result.images),
            success=result.success | found,
            best_loss=jnp.where(
                active, jnp.maximum(result.best_loss, state.best_loss), result.best_loss
            ),
        )
    return result


def _objective(loss, model, labels, targets):
    if not isinstance(loss, str):
        return loss
    if loss in LOSSES:
        return LOSSES[loss](model, labels)
    if loss not in TARGETED_LOSSES:
        allowed = ", ".join([*LOSSES, *TARGETED_LOSSES])
        raise ValueError(f"loss={loss!r}: allowed are {allowed}, or an objective")
    if targets is None:
        raise ValueError(f"loss={loss!r} needs targets")
    check_labels(targets, len(labels), name="targets")
    return TARGETED_LOSSES[loss](model, labels, targets)


@jax.jit
def surface_start(threat_model: ThreatModel, keys: Key[Array, "batch"], natural: Images) -> Images:
    """Random points at distance epsilon, clipped to [0, 1]."""
    noise = threat_model.noise(keys, natural)
    return at_distance(threat_model, natural, noise, threat_model.epsilon)
