"""The terms of adversarial losses: cross-entropy, TRADES, MART, SAT, S2O, distillation."""

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


def distillation(
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    temperature: float,
) -> Float[Array, ""]:
    """Mean over the batch of ``T^2 KL(softmax(sg(teacher) / T) || softmax(student / T))``.

    The factor keeps the gradient as large as that of the cross-entropy, whatever ``T``.

    Args:
      student: logits of one head.
      teacher: logits for the same examples; frozen.
      temperature: ``T``.
    """
    target = jax.lax.stop_gradient(teacher) / temperature
    return temperature**2 * kl_divergence(target, student / temperature)


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
