"""The asymmetric negative contrast as a wrapper around any adversarial method."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.methods.attack import AttackRequest, AttackSettings
from ancra_jax.methods.core import (
    NEGATIVE_ATTACK,
    NEGATIVE_CHOICE,
    Method,
    Plan,
    _needs_an_attack,
    _needs_epochs_after,
    example_keys,
)
from ancra_jax.methods.negatives import RANDOM, check_strategy, choose_negatives


def negative_contrast(
    method: Method,
    settings: AttackSettings,
    *,
    zeta: float,
    alpha: float,
    strategy: str,
    targeted: bool,
    random_epochs: int,
    aux_weight: float,
) -> Method:
    """Adds ``zeta Sim_alpha(x, x_neg)`` over all heads to a method's loss (paper eq. 3-5).

    The natural outputs are those of the method's own training-phase forward; a method without one
    (PGD-AT) gets one, after its own. The negatives' forward is the last, with their own labels.

    Args:
      method: the method to extend.
      settings: the attack on the negatives; that of the method's own, so that both run as one.
      zeta: weight of the term.
      alpha: 1 freezes the natural example and pushes its negative away, 0 the other way round.
      strategy: choice of negatives, see ``ancra_jax.negatives``.
      targeted: whether the chosen negatives are attacked toward their anchors' classes first.
      random_epochs: epochs at the start in which negatives are chosen at random.
      aux_weight: weight of the auxiliary heads.

    Raises:
      UsageError: there is no such strategy.
    """
    check_strategy(strategy)

    def choose(predict, batch, key, epoch):
        keys = example_keys(key, NEGATIVE_CHOICE, batch.indices)
        random = lambda: choose_negatives(RANDOM, keys, batch.labels)  # noqa: E731
        if strategy == RANDOM:
            return random()
        chosen = lambda: choose_negatives(  # noqa: E731
            strategy, keys, batch.labels, predict(batch.images).logits
        )
        return jax.lax.cond(epoch < random_epochs, random, chosen)

    def prepare(predict, batch, key, epoch):
        plan = method.prepare(predict, batch, key, epoch)
        negatives = choose(predict, batch, key, epoch)
        images = batch.images[negatives.positions]
        extras = plan.extras | {
            "negatives": negatives,
            "negative_images": images,
            "negative_labels": batch.labels[negatives.positions],
        }
        if not targeted:
            return Plan(plan.requests, extras)
        keys = example_keys(key, NEGATIVE_ATTACK, batch.indices)
        request = AttackRequest(settings, images, batch.labels, True, keys)
        return Plan(plan.requests | {"negative": request}, extras)

    def loss(forward, batch_stats, examples):
        terms = method.loss(forward, batch_stats, examples)
        images, labels, _ = examples.batch
        natural, batch_stats = terms.natural, terms.batch_stats
        if natural is None:
            natural, batch_stats = forward(batch_stats, images, labels)
        negatives = examples.extras["negatives"]
        negative_images = examples.attacked.get("negative", examples.extras["negative_images"])
        negative_labels = examples.extras["negative_labels"]
        negative, batch_stats = forward(batch_stats, negative_images, negative_labels)
        similarity = losses.combined(
            lambda p, q: losses.asymmetric_similarity(p, q, negatives.valid, alpha),
            natural,
            negative,
            aux_weight=aux_weight,
        )
        metrics = terms.metrics | {
            "loss_negative_contrast": similarity,
            "negatives_missing": jnp.mean(~negatives.valid, dtype=jnp.float32),
            "negatives_fallback": jnp.mean(negatives.fallback, dtype=jnp.float32),
        }
        return terms._replace(
            loss=terms.loss + zeta * similarity,
            batch_stats=batch_stats,
            natural=natural,
            metrics=metrics,
        )

    return method._replace(prepare=prepare, loss=loss)


def with_negative_contrast(method: Method, config: Config, settings: AttackSettings) -> Method:
    """ANC (paper eq. 3-5) for ``config.negative_contrast.zeta`` above 0."""
    contrast = config.negative_contrast
    if contrast.zeta == 0:
        return method
    _needs_an_attack(config, f"config.negative_contrast.zeta={contrast.zeta}")
    if contrast.strategy != RANDOM:
        _needs_epochs_after(config, "negative_contrast.random_epochs", contrast.random_epochs)
    return negative_contrast(
        method,
        # The negatives' attack always descends the cross-entropy (paper eq. 5).
        replace(settings, objective="cross_entropy"),
        zeta=contrast.zeta,
        alpha=contrast.alpha,
        strategy=contrast.strategy,
        targeted=contrast.targeted,
        random_epochs=contrast.random_epochs,
        aux_weight=config.method.aux_weight,
    )
