"""The regulariser of S2O, from second-order statistics of a batch's logits.

References:
  Jin et al., Enhancing Adversarial Training with Second-Order Statistics of Weights, CVPR 2022; in
  the form that the authors' code gives it.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def class_targets(
    logits: Float[Array, "batch classes"], diagonal: float
) -> Float[Array, "classes classes"]:
    """A distribution over the classes for every class, from how the logits vary together.

    With ``A = -|sum_i o_i o_i^T|`` over the logits ``o_i``: every row less its minimum, its
    diagonal set to 0, scaled to sum to ``1 - diagonal``, its diagonal set to ``diagonal``. A row
    that is 0 off its diagonal is spread evenly. Carries no gradient.

    Args:
      logits: of one forward pass and one head.
      diagonal: probability of the class itself.
    """
    o = jax.lax.stop_gradient(logits)
    similarity = -jnp.abs(jnp.matmul(o.T, o, precision="highest"))
    classes = len(similarity)
    off_diagonal = 1.0 - jnp.eye(classes)
    rows = (similarity - jnp.min(similarity, axis=1, keepdims=True)) * off_diagonal
    sums = jnp.sum(rows, axis=1, keepdims=True)
    shares = jnp.where(
        sums > 0, rows / jnp.where(sums > 0, sums, 1.0), off_diagonal / (classes - 1)
    )
    return (1.0 - diagonal) * shares + diagonal * jnp.eye(classes)


def second_order_divergence(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"], diagonal: float
) -> Float[Array, ""]:
    """Mean over the batch of ``KL(t_i || p_i)``, ``t_i`` being row ``y_i`` of ``class_targets``."""
    targets = class_targets(logits, diagonal)[labels]
    return jnp.mean(optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets))
