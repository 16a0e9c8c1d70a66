"""The two terms of MART, which treats misclassified examples differently.

With ``p = softmax(natural)`` and ``q = softmax(adversarial)`` the loss is ``boosted_cross_entropy +
lambda weighted_kl``; nothing is detached.

References:
  Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR
  2020. The small constants are those of the authors' code.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ancra_jax.losses.basic import cross_entropy

_TINY = 1e-12


def boosted_cross_entropy(
    adversarial: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean over the batch of ``-log q_y - log(1.0001 - max_{k != y} q_k + 1e-12)``.

    Args:
      adversarial: logits of the adversarial examples.
      labels: class numbers.
      label_smoothing: of the first term, see ``cross_entropy``.
    """
    q = jax.nn.softmax(adversarial)
    is_label = jax.nn.one_hot(labels, q.shape[-1], dtype=bool)
    largest_other = jnp.max(jnp.where(is_label, 0.0, q), axis=-1)
    margin = -jnp.log(1.0001 - largest_other + _TINY)
    return cross_entropy(adversarial, labels, label_smoothing) + jnp.mean(margin)


def weighted_kl(
    natural: Float[Array, "batch classes"],
    adversarial: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
) -> Float[Array, ""]:
    """Mean over the batch of ``KL(p || q + 1e-12) (1.0000001 - p_y)``."""
    log_p = jax.nn.log_softmax(natural)
    log_q = jnp.log(jax.nn.softmax(adversarial) + _TINY)
    divergence = optax.losses.kl_divergence_with_log_targets(log_q, log_p)
    p_label = jnp.exp(jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0])
    return jnp.mean(divergence * (1.0000001 - p_label))
