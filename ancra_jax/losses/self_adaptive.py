"""Self-adaptive training: soft labels that follow what the network says about an example.

References:
  Huang et al., Self-Adaptive Training: beyond Empirical Risk Minimization, NeurIPS 2020.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def adapted_labels(
    soft_labels: Float[Array, "batch classes"],
    logits: Float[Array, "batch classes"],
    momentum: float,
) -> Float[Array, "batch classes"]:
    """``momentum t + (1 - momentum) sg(softmax(logits))``; labels carry no gradient."""
    predicted = jax.lax.stop_gradient(jax.nn.softmax(logits))
    return momentum * soft_labels + (1 - momentum) * predicted


def self_adaptive_cross_entropy(
    logits: Float[Array, "batch classes"], soft_labels: Float[Array, "batch classes"]
) -> Float[Array, ""]:
    """Mean over the batch of ``w_i (-sum_k t_ik log p_ik)``.

    ``w_i`` is ``max_k t_ik``, scaled so that the weights sum to the size of the batch.

    With one-hot labels every weight is 1 and this is the cross-entropy.
    """
    weights = jnp.max(soft_labels, axis=-1)
    values = optax.softmax_cross_entropy(logits, soft_labels)
    return jnp.sum(weights * values) / jnp.sum(weights)
