"""The two terms that most adversarial losses are made of."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Float[Array, ""]:
    """Mean over the batch of ``-log softmax(logits)[label]``."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def kl_divergence(
    natural: Float[Array, "batch classes"], adversarial: Float[Array, "batch classes"]
) -> Float[Array, ""]:
    """Mean over the batch of ``KL(p(x) || p(x_adv))``, TRADES' regulariser.

    Nothing is detached: both forwards receive gradient.

    References:
      Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019.
    """
    return jnp.mean(
        optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(adversarial), jax.nn.log_softmax(natural)
        )
    )
