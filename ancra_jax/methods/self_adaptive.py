"""Self-adaptive training on top of TRADES (SAT): soft labels kept by data-set index."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ancra_jax import losses
from ancra_jax.config.schema import Config, shown
from ancra_jax.errors import UsageError
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, Examples, Method, PairTerms
from ancra_jax.methods.registry import register
from ancra_jax.methods.standard import kl_divergence
from ancra_jax.types import Outputs


@register("sat")
def sat(config: Config, attack: AttackSettings) -> Method:
    """Minimise TRADES' loss with the cross-entropy to soft labels that follow the predictions.

    Every training example has a soft label, one-hot at the start, in the method's state. From
    ``config.self_adaptive.start_epoch`` on, counted from 1 as milestones of the learning rate are,
    those of a batch move toward the final head's natural prediction before they are used; until
    then the loss is that of TRADES. All heads share the soft labels.

    References:
      Huang et al., Self-Adaptive Training: beyond Empirical Risk Minimization, NeurIPS 2020.
    """
    method, start_epoch = config.method, config.self_adaptive.start_epoch
    if method.label_smoothing > 0:
        raise UsageError(
            f"{shown(config, 'method.label_smoothing')}: must be 0 for 'sat', "
            "whose labels are soft already"
        )
    if start_epoch > config.epochs:
        raise UsageError(
            f"{shown(config, 'self_adaptive.start_epoch')}: must be at most "
            f"{shown(config, 'epochs')}, or no soft label ever moves"
        )

    def init_state(labels: Int[Array, "examples"], num_classes: int) -> core.MethodState:
        return {"soft_labels": jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)}

    def loss(natural: Outputs, adversarial: Outputs, examples: Examples) -> PairTerms:
        indices, memory = examples.batch.indices, examples.state["soft_labels"]
        kept = memory[indices]
        adapted = losses.adapted_labels(kept, natural.logits, config.self_adaptive.momentum)
        soft_labels = jnp.where(examples.epoch + 1 >= start_epoch, adapted, kept)
        term = partial(losses.self_adaptive_cross_entropy, soft_labels=soft_labels)
        classification, of_natural = core.over_heads(
            "loss_natural", term, natural, aux_weight=method.aux_weight
        )
        kl, of_kl = kl_divergence(natural, adversarial, method)
        state = examples.state | {"soft_labels": memory.at[indices].set(soft_labels)}
        return classification + method.beta * kl, of_natural | of_kl, state

    return core.natural_and_adversarial(attack, loss)._replace(init_state=init_state)
