"""Training losses: pure functions of logits and labels, each equation in one place.

The methods in ``ancra_jax.methods`` name the papers. In the equations ``p`` is
``softmax(natural)``, ``q`` is ``softmax(adversarial)``, ``y`` the label, ``sg`` ``stop_gradient``.
All logits are those of one head; `combined` takes a term over all heads of a network.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ancra_jax.attacks.arguments import as_array, as_classes, as_number, has_kind
from ancra_jax.attacks.objectives import combine_heads, cross_entropy_term, pick
from ancra_jax.ops.images import AnyLabels, Flags, Labels
from ancra_jax.types import Logits, Outputs, Scalar

__all__ = ["cross_entropy", "distillation", "kl_divergence"]
__all__ += ["boosted_cross_entropy", "weighted_kl"]  # MART
__all__ += ["adapted_labels", "self_adaptive_cross_entropy"]  # SAT
__all__ += ["class_targets", "second_order_divergence"]  # S2O
__all__ += ["logit_differences", "soft_cross_entropy"]  # DKL, IKL
__all__ += ["rectified_labels"]  # ADR
__all__ += ["asymmetric_similarity", "by_head", "combined", "matching"]  # ANCRA
__all__ += ["margin_alignment", "true_class_similarity"]  # what takes the place of its masks

_ROUNDING = 1e-2  # of the sum of probabilities, in bfloat16 too
_TINY = 1e-12  # within MART's logarithms, as in its authors' code


def _of(labels: AnyLabels, logits: Logits) -> Labels:
    """Return the labels of a batch of logits; refuse what are none with a ValueError."""
    return jnp.asarray(as_classes(labels, len(logits), logits.shape[-1]))


def _check_alike(one: Logits, other: Logits) -> None:
    """Refuse logits of different shapes, which would be broadcast, with a ValueError."""
    if one.shape != other.shape:
        raise ValueError(f"logits of shapes {one.shape} and {other.shape}: expected equal shapes")


def cross_entropy(
    logits: Logits, labels: AnyLabels | Logits, label_smoothing: float = 0.0
) -> Scalar:
    """Average ``-log softmax(logits)_y`` over the batch.

    Labels are class numbers; or soft labels, a probability for each class, and the average is that
    of ``-sum_k y_k log softmax(logits)_k``. ``label_smoothing`` is the probability that is moved
    from the label to all classes alike, in [0, 1] (Szegedy et al., CVPR 2016).
    """
    label_smoothing = as_number(label_smoothing, "label_smoothing", most=1.0, closed=True)
    given = as_array(labels, "labels")
    if given.shape == logits.shape and has_kind(given, jnp.floating):
        targets = jnp.asarray(given)
        if not isinstance(given, jax.core.Tracer) and not _are_probabilities(np.asarray(given)):
            raise ValueError("labels: soft labels are to be probabilities, whose sum is 1")
    else:
        labels = _of(labels, logits)
        if isinstance(label_smoothing, float) and label_smoothing == 0.0:
            return jnp.mean(cross_entropy_term(logits, labels))
        targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, label_smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def _are_probabilities(rows: Float[np.ndarray, "batch classes"]) -> bool:
    return bool((rows >= 0).all() and (abs(rows.sum(axis=-1) - 1) < _ROUNDING).all())


def kl_divergence(natural: Logits, adversarial: Logits) -> Scalar:
    """Average ``KL(p || q)`` over the batch; both sides receive gradient (TRADES)."""
    _check_alike(natural, adversarial)
    log_p, log_q = jax.nn.log_softmax(natural), jax.nn.log_softmax(adversarial)
    return jnp.mean(optax.losses.kl_divergence_with_log_targets(log_q, log_p))


def distillation(student: Logits, teacher: Logits, temperature: float) -> Scalar:
    """Average ``T^2 KL(softmax(sg(teacher) / T) || softmax(student / T))`` over the batch.

    The factor keeps the gradient as large as that of the cross-entropy, whatever the
    temperature ``T``.
    """
    temperature = as_number(temperature, "temperature")
    target = jax.lax.stop_gradient(teacher) / temperature
    return temperature**2 * kl_divergence(target, student / temperature)


def boosted_cross_entropy(
    adversarial: Logits, labels: AnyLabels, label_smoothing: float = 0.0
) -> Scalar:
    """Average ``-log q_y - log(1.0001 - max_{k != y} q_k + 1e-12)`` over the batch (MART).

    ``label_smoothing`` is that of ``-log q_y``, as for `cross_entropy`.
    """
    labels = _of(labels, adversarial)
    q = jax.nn.softmax(adversarial)
    is_label = jax.nn.one_hot(labels, q.shape[-1], dtype=bool)
    largest_other = jnp.max(jnp.where(is_label, 0.0, q), axis=-1)
    margin = -jnp.log(1.0001 - largest_other + _TINY)
    return cross_entropy(adversarial, labels, label_smoothing) + jnp.mean(margin)


def weighted_kl(natural: Logits, adversarial: Logits, labels: AnyLabels) -> Scalar:
    """Average ``KL(p || q + 1e-12) (1.0000001 - p_y)`` over the batch: MART's second term."""
    _check_alike(natural, adversarial)
    labels = _of(labels, natural)
    log_p = jax.nn.log_softmax(natural)
    log_q = jnp.log(jax.nn.softmax(adversarial) + _TINY)
    divergence = optax.losses.kl_divergence_with_log_targets(log_q, log_p)
    p_label = jnp.exp(pick(log_p, labels))
    return jnp.mean(divergence * (1.0000001 - p_label))


def class_targets(logits: Logits, diagonal: float) -> Float[Array, "classes classes"]:
    """Derive a distribution over the classes for every class from how the logits vary together.

    With ``A = -|sum_i o_i o_i^T|`` over the logits ``o_i``: every row less its minimum, its
    diagonal set to 0, scaled to sum to ``1 - diagonal``, its diagonal set to ``diagonal``. A row
    that is 0 off its diagonal is spread evenly. The logits, of one forward pass, receive no
    gradient (S2O).
    """
    diagonal = as_number(diagonal, "diagonal", most=1.0, closed=True)
    o = jax.lax.stop_gradient(logits)
    similarity = -jnp.abs(jnp.matmul(o.T, o, precision="highest"))
    classes = len(similarity)
    off_diagonal = 1.0 - jnp.eye(classes)
    rows = (similarity - jnp.min(similarity, axis=1, keepdims=True)) * off_diagonal
    sums = jnp.sum(rows, axis=1, keepdims=True)
    even = off_diagonal / (classes - 1)
    shares = jnp.where(sums > 0, rows / jnp.where(sums > 0, sums, 1.0), even)
    return (1.0 - diagonal) * shares + diagonal * jnp.eye(classes)


def second_order_divergence(logits: Logits, labels: AnyLabels, diagonal: float) -> Scalar:
    """Average ``KL(t || softmax(logits))`` over the batch, ``t`` row ``y`` of `class_targets`."""
    targets = class_targets(logits, diagonal)[_of(labels, logits)]
    return jnp.mean(optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets))


def logit_differences(natural: Logits, adversarial: Logits, weights: Logits) -> Scalar:
    """Average ``1/4 sum_jk w_j w_k ((o_j - o_k) - (o'_j - o'_k))^2`` over the batch.

    ``o`` are the natural logits, ``o'`` the adversarial ones; the weights, which sum to 1, receive
    no gradient. This is the weighted squared error of the decoupled KL divergence (DKL), and half
    the variance of ``o - o'`` under the weights. With ``w = p`` its gradient in ``o`` is that of
    ``KL(p || q)``; that in ``o'`` is the one of `soft_cross_entropy`.
    """
    _check_alike(natural, adversarial)
    _check_alike(natural, weights)
    weights, differences = jax.lax.stop_gradient(weights), natural - adversarial
    mean = jnp.sum(weights * differences, axis=-1, keepdims=True)
    return 0.5 * jnp.mean(jnp.sum(weights * (differences - mean) ** 2, axis=-1))


def soft_cross_entropy(natural: Logits, adversarial: Logits) -> Scalar:
    """Average ``-sum_k sg(p_k) log q_k`` over the batch: the other term of DKL."""
    _check_alike(natural, adversarial)
    return cross_entropy(adversarial, jax.lax.stop_gradient(jax.nn.softmax(natural)))


def rectified_labels(
    logits: Logits, labels: AnyLabels, temperature: float | Scalar, interpolation: float | Scalar
) -> Logits:
    """Return soft labels that lean on the predictions where these are not too wrong (ADR).

    With ``t = sg(softmax(logits / temperature))``, for every image::

        c = clip(interpolation - (max_k t_k - t_y), 0, 1)
        soft label = c t + (1 - c) one_hot(y)
    """
    labels = _of(labels, logits)
    predicted = jax.lax.stop_gradient(jax.nn.softmax(logits / temperature))
    gap = jnp.max(predicted, axis=-1) - pick(predicted, labels)
    share = jnp.clip(interpolation - gap, 0.0, 1.0)[:, None]
    return share * predicted + (1 - share) * jax.nn.one_hot(labels, logits.shape[-1])


def adapted_labels(soft_labels: Logits, logits: Logits, momentum: float) -> Logits:
    """Return ``momentum t + (1 - momentum) sg(p)``, labels ``t`` that follow predictions (SAT)."""
    _check_alike(soft_labels, logits)
    momentum = as_number(momentum, "momentum", most=1.0, closed=True)
    predicted = jax.lax.stop_gradient(jax.nn.softmax(logits))
    return momentum * soft_labels + (1 - momentum) * predicted


def self_adaptive_cross_entropy(logits: Logits, soft_labels: Logits) -> Scalar:
    """Average ``w (-sum_k t_k log p_k)`` over the batch, with SAT's soft labels ``t``.

    ``w`` is ``max_k t_k``, scaled so that the weights sum to the size of the batch. With one-hot
    labels every weight is 1 and this is the cross-entropy.
    """
    _check_alike(soft_labels, logits)
    weights = jnp.max(soft_labels, axis=-1)
    values = optax.softmax_cross_entropy(logits, soft_labels)
    return jnp.sum(weights * values) / jnp.sum(weights)


def asymmetric_similarity(natural: Logits, negative: Logits, valid: Flags, alpha: float) -> Scalar:
    """Measure how alike natural images and their negatives look where they are predicted alike.

    With probabilities ``p = softmax(natural)``, ``q = softmax(negative)`` and the predicted classes
    ``h = argmax p`` (paper eq. 3-4)::

        Sim = 1/B sum_i 1[h_i = argmax q_i] ( alpha       sqrt(sg(p_i[h_i]) q_i[h_i])
                                            + (1 - alpha) sqrt(p_i[h_i] sg(q_i[h_i])) )

    ``sg`` is ``stop_gradient``: with ``alpha = 1`` the natural image is frozen and only the
    negative is pushed away. The sum is divided by the batch size, not by the number of matches.

    Args:
      natural: logits of the natural images.
      negative: logits of their negatives, row by row.
      valid: pairs that exist; a batch of one class has no negatives and contributes 0.
      alpha: weight of the direction that freezes the natural image, in [0, 1].
    """
    _check_alike(natural, negative)
    alpha = as_number(alpha, "alpha", most=1.0, closed=True)
    p = jax.nn.softmax(natural)
    q = jax.nn.softmax(negative)
    predicted = jnp.argmax(p, axis=-1)
    matches = matching(p, q) & valid
    # Where a pair does not count, the root is taken of 1: its gradient at 0 would be infinite,
    # and infinity times the mask's 0 is NaN. A matched product is at least 1 / classes ** 2.
    p_h = jnp.where(matches, pick(p, predicted), 1.0)
    q_h = jnp.where(matches, pick(q, predicted), 1.0)
    sg = jax.lax.stop_gradient
    similarity = alpha * jnp.sqrt(sg(p_h) * q_h) + (1 - alpha) * jnp.sqrt(p_h * sg(q_h))
    return jnp.mean(jnp.where(matches, similarity, 0.0))


def true_class_similarity(
    natural: Logits, negative: Logits, labels: AnyLabels, valid: Flags, alpha: float
) -> Scalar:
    """Measure how much negatives look like the true classes of their natural images.

    `asymmetric_similarity` with the label ``y_i`` in place of the predicted class and without the
    condition that both are predicted alike, so that every pair counts::

        1/B sum_i alpha sqrt(sg(p_i[y_i]) q_i[y_i]) + (1 - alpha) sqrt(p_i[y_i] sg(q_i[y_i]))

    Args:
      natural: logits of the natural images.
      negative: logits of their negatives, row by row.
      labels: true classes of the natural images.
      valid: pairs that exist; the others contribute 0.
      alpha: weight of the direction that freezes the natural image, in [0, 1].
    """
    _check_alike(natural, negative)
    labels = _of(labels, natural)
    alpha = as_number(alpha, "alpha", most=1.0, closed=True)
    # Of logarithms: the root of a product that underflows to 0 has no gradient.
    log_p, log_q = (pick(jax.nn.log_softmax(z), labels) for z in (natural, negative))
    sg = jax.lax.stop_gradient
    similarity = alpha * jnp.exp((sg(log_p) + log_q) / 2)
    similarity += (1 - alpha) * jnp.exp((log_p + sg(log_q)) / 2)
    return jnp.mean(jnp.where(valid, similarity, 0.0))


def margin_alignment(natural: Outputs, adversarial: Outputs, labels: AnyLabels) -> Scalar:
    """Bound how far the attack moves every margin of the label, without cancellation.

    With the features ``z`` and ``z'`` of natural and adversarial images, the rows ``Omega`` of the
    final linear layer and the adversarial probabilities ``q``::

        1/B sum_i sum_{k != y} sg(q_y q_k) (sum_d |Omega_yd - Omega_kd| |z_d - z'_d|)^2

    The margin ``f_y - f_k`` is ``(Omega_y - Omega_k) z``, so the inner sum is the most by which it
    can move. Features and rows receive gradient, the weights ``q_y q_k`` none.

    Raises:
      ValueError: the network does not say its rows (``Outputs.class_rows``).
    """
    _check_alike(natural.logits, adversarial.logits)
    labels = _of(labels, natural.logits)
    rows = natural.class_rows
    if rows is None:
        raise ValueError("the network's outputs have no class_rows, whose margins could be aligned")
    q = jax.nn.softmax(jax.lax.stop_gradient(adversarial.logits))
    weights = pick(q, labels)[:, None] * q
    # The label's own part is 0.
    apart = jnp.abs(rows[labels][:, None] - rows)
    moved = jnp.abs(natural.features - adversarial.features)
    bound = jnp.sum(apart * moved[:, None], axis=-1)
    return jnp.mean(jnp.sum(weights * bound**2, axis=-1))


def matching(natural: Logits, negative: Logits) -> Flags:
    """Return which negatives are predicted as their natural images are, eq. 4's indicator."""
    return jnp.argmax(natural, axis=-1) == jnp.argmax(negative, axis=-1)


def combined(term: Callable[..., Scalar], *outputs: Outputs, aux_weight: float) -> Scalar:
    """Compute ``g(f') + aux_weight mean_k g(p_k)``, which the paper writes with a hat.

    Args:
      term: ``g``; takes the logits of every element of ``outputs``, all of the same head.
      *outputs: network outputs (natural, adversarial, ...), with equally many auxiliary heads.
      aux_weight: lambda_aux of the paper, 2 by default in the configurations.

    Returns:
      The combined term; ``g(f')`` alone for networks without auxiliary heads.
    """
    final, auxiliary = _heads(outputs)
    return combine_heads(lambda logits: term(*logits), final, auxiliary, aux_weight)


def by_head(term: Callable[..., Scalar], *outputs: Outputs) -> dict[str, Scalar]:
    """Compute a term of each head: ``'final'``, and ``'aux1'``, ``'aux2'`` where there are such."""
    final, auxiliary = _heads(outputs)
    values = {"final": term(*final)}
    if len(auxiliary[0]):
        found = jax.vmap(term)(*auxiliary)
        values |= {f"aux{k}": value for k, value in enumerate(found, start=1)}
    return values


def _heads(outputs: Sequence[Outputs]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    return (
        tuple(output.logits for output in outputs),
        tuple(output.aux_logits for output in outputs),
    )
