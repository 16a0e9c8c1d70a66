"""Self-adaptive training on top of TRADES (SAT): soft labels kept by data-set index."""

import jax
import jax.numpy as jnp

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Method, natural_and_adversarial
from ancra_jax.methods.registry import register


@register("sat")
def _sat(config: Config, settings: AttackSettings) -> Method:
    if config.method.label_smoothing > 0:
        raise UsageError(
            f"config.method.label_smoothing={config.method.label_smoothing}: must be 0 for the "
            "method 'sat', whose labels are soft already"
        )
    if config.self_adaptive.start_epoch > config.epochs:
        raise UsageError(
            f"config.self_adaptive.start_epoch={config.self_adaptive.start_epoch}: must be at most "
            f"config.epochs={config.epochs}, or no soft label ever moves"
        )
    return self_adaptive_trades(
        settings,
        config.method.beta,
        config.method.aux_weight,
        start_epoch=config.self_adaptive.start_epoch,
        momentum=config.self_adaptive.momentum,
    )


def self_adaptive_trades(
    settings: AttackSettings, beta: float, aux_weight: float, *, start_epoch: int, momentum: float
) -> Method:
    """TRADES with the cross-entropy to soft labels that follow the natural predictions.

    Every training example has a soft label, one-hot at the start, in the method's state. From
    ``start_epoch`` on those of a batch move toward the final head's natural prediction before they
    are used; until then they are one-hot, and the loss is that of TRADES.

    Args:
      settings: the attack.
      beta: weight of the KL term.
      aux_weight: weight of the auxiliary heads, which share the soft labels.
      start_epoch: from 1, as milestones of the learning rate.
      momentum: share of the old label that is kept.

    References:
      Huang et al., Self-Adaptive Training: beyond Empirical Risk Minimization, NeurIPS 2020.
    """

    def init_state(labels, num_classes):
        return {"soft_labels": jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)}

    def loss(natural, adversarial, examples):
        indices, memory = examples.batch.indices, examples.state["soft_labels"]
        kept = memory[indices]
        adapted = losses.adapted_labels(kept, natural.logits, momentum)
        soft_labels = jnp.where(examples.epoch + 1 >= start_epoch, adapted, kept)
        classification = losses.combined(
            lambda logits: losses.self_adaptive_cross_entropy(logits, soft_labels),
            natural,
            aux_weight=aux_weight,
        )
        kl = losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=aux_weight)
        metrics = {"loss_natural": classification, "loss_kl": kl}
        state = examples.state | {"soft_labels": memory.at[indices].set(soft_labels)}
        return classification + beta * kl, metrics, state

    return natural_and_adversarial(settings, loss)._replace(init_state=init_state)
