"""The two terms that most adversarial losses are made of."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean over the batch of ``-log softmax(logits)[label]``.

    Args:
      logits: of one head.
      labels: class numbers.
      label_smoothing: probability that is moved from the label to all classes alike, in [0, 1].

    References:
      Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, for
      label smoothing.
    """
    if label_smoothing == 0.0:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


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
