"""Helper-based adversarial training (HAT): TRADES, and examples beyond the adversarial ones."""

from functools import partial

import jax
import jax.numpy as jnp

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods import core, standard
from ancra_jax.methods.core import AttackSettings, BatchStats, Examples, Forward, Method, Terms
from ancra_jax.methods.registry import register


@register("hat")
def hat(
    config: Config, attack: AttackSettings, *, helper_weight: float = 0.5, distance: float = 2.0
) -> Method:
    """Minimise TRADES' loss plus ``helper_weight CE(x + distance (x_adv - x), t)``.

    ``t`` is the class that a network of natural training, ``config.distillation.teacher``, sees in
    the adversarial image. The helper images, which are not clipped, have the last forward.

    References:
      Rade and Moosavi-Dezfooli, Reducing Excessive Margin to Achieve a Better Accuracy vs.
      Robustness Trade-off, ICLR 2022; defaults of its authors' code.
    """
    if helper_weight < 0 or distance <= 0:
        raise UsageError(
            f"--config.method.options: {helper_weight=} must be at least 0, {distance=} above 0"
        )
    method = standard.trades(config, attack)

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        if examples.teacher is None:
            raise UsageError("--config.method.name='hat': the step was given no teacher")
        terms = method.loss(forward, batch_stats, examples)
        images, adversarial = examples.batch.images, examples.attacked["adversarial"]
        labels = jnp.argmax(examples.teacher(adversarial).logits, axis=-1).astype(jnp.int32)
        helpers = jax.lax.stop_gradient(images + distance * (adversarial - images))
        outputs, batch_stats = forward(terms.batch_stats, helpers, labels)
        term = partial(losses.cross_entropy, labels=labels)
        aux_weight = config.method.aux_weight
        value, of_term = core.over_heads("loss_helper", term, outputs, aux_weight=aux_weight)
        return terms._replace(
            loss=terms.loss + helper_weight * value,
            batch_stats=batch_stats,
            metrics=terms.metrics | of_term,
        )

    return method._replace(loss=loss, needs_teacher=True)
