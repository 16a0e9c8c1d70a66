"""What an attack ascends: per-example functions ``objective(images) -> [batch]``.

An objective is a pytree that holds the model and what it is judged by (labels, targets, reference
logits), so it travels through ``jit`` as an argument: other weights, labels or targets do not
compile again. Any other callable pytree of the same signature is an objective too.

With auxiliary heads ``p_k`` and ``aux_weight`` > 0 an objective is "with p": its term is taken over
the heads as well, by ``combine_heads``. With ``aux_weight=0`` the final logits alone count.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ancra_jax.attacks.model import Images, Model, as_pytree, model_outputs, read_outputs
from ancra_jax.ops.pytree import pytree_dataclass

Logits = Float[Array, "batch classes"]
Labels = Int[Array, "batch"]
Values = Float[Array, "batch"]
Objective = Callable[[Images], Values]

_TINY = 1e-12


def combine_heads(
    term: Callable[[Any], Array],
    logits: PyTree[Array],
    aux_logits: PyTree[Array],
    weight: float | int | Float[Array, ""],
) -> Array:
    """Takes a term over the final logits and the auxiliary heads.

    Computes ``term(f') + weight * mean_k term(p_k)``, written with a hat in the ANCRA paper, where
    ``weight`` is lambda_aux = 2.

    Args:
      term: function of one head's logits [batch, classes] to an array of any shape.
      logits: the final logits, or a pytree of such arrays that ``term`` takes.
      aux_logits: the same structure with one more leading axis, the heads; it may have length 0.
      weight: weight of the heads' mean.

    Returns:
      The combined term; ``term(logits)`` alone if there are no heads.
    """
    final = term(logits)
    if jax.tree.leaves(aux_logits)[0].shape[0] == 0:
        return final
    return final + weight * jnp.mean(jax.vmap(term)(aux_logits), axis=0)


def cross_entropy_term(logits: Logits, labels: Labels) -> Values:
    """``-log softmax(z)_y``."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def targeted_cross_entropy_term(logits: Logits, targets: Labels) -> Values:
    """``log softmax(z)_t``: descends the cross-entropy to the target."""
    return -cross_entropy_term(logits, targets)


def margin_term(logits: Logits, labels: Labels) -> Values:
    """``max_{k != y} z_k - z_y`` (Carlini & Wagner); positive if and only if misclassified."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return others - _pick(logits, labels)


def targeted_margin_term(logits: Logits, labels: Labels, targets: Labels) -> Values:
    """``z_t - z_y``."""
    return _pick(logits, targets) - _pick(logits, labels)


def dlr_term(logits: Logits, labels: Labels) -> Values:
    """Difference of logits ratio: ``-(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12)``.

    ``z_(i)`` is the i-th largest logit. Invariant to shift and scale of the logits.

    References:
      Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, ICML 2020, eq. 6.
    """
    largest = _largest(logits, 3, "DLR")
    return margin_term(logits, labels) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr_term(logits: Logits, labels: Labels, targets: Labels) -> Values:
    """``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`` (same paper, eq. 7)."""
    largest = _largest(logits, 4, "targeted DLR")
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + _TINY
    return targeted_margin_term(logits, labels, targets) / scale


def _pick(logits, classes):
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _largest(logits, count, name):
    if logits.shape[-1] < count:
        raise ValueError(
            f"{name} needs at least {count} classes, the model has {logits.shape[-1]}: "
            "use the margin objective"
        )
    return jax.lax.top_k(logits, count)[0]


@pytree_dataclass(static=("term",))
class LogitsObjective:
    """``term(logits, *operands)`` of every example.

    Attributes:
      term: function of ``(logits [batch, classes], *operands)`` to one number per example; static
        in ``jit``, so a module-level function.
      model: see ``attacks.model.Model``.
      operands: arrays over the batch (labels, targets).
      aux_weight: weight of the auxiliary heads' mean; None ignores them.
    """

    term: Callable[..., Values]
    model: Model
    operands: tuple[Array, ...]
    aux_weight: float | int | Float[Array, ""] | None = None

    def __call__(self, images: Images) -> Values:
        """Evaluates the objective."""
        return self.values_and_logits(images)[0]

    def values_and_logits(self, images: Images) -> tuple[Values, Logits]:
        """Evaluates the objective and returns the model's final logits with it."""
        logits, aux_logits = model_outputs(self.model, images)
        if self.aux_weight is None:
            return self.term(logits, *self.operands), logits
        values = combine_heads(
            lambda head: self.term(head, *self.operands), logits, aux_logits, self.aux_weight
        )
        return values, logits


@pytree_dataclass()
class KLObjective:
    """``KL(p_reference || p(images))`` of every example, head by head; see ``kl_divergence``."""

    model: Model
    reference_logits: Logits
    reference_aux_logits: Float[Array, "heads batch classes"]
    aux_weight: float | int | Float[Array, ""] | None = None

    def __call__(self, images: Images) -> Values:
        """Evaluates the objective."""
        logits, aux_logits = model_outputs(self.model, images)
        if self.aux_weight is None:
            return _kl((self.reference_logits, logits))
        return combine_heads(
            _kl,
            (self.reference_logits, logits),
            (self.reference_aux_logits, aux_logits),
            self.aux_weight,
        )


def _kl(reference_and_logits):
    reference, logits = reference_and_logits
    return optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
    )


def _objective(term, model, operands, aux_weight):
    operands = tuple(jnp.asarray(operand, jnp.int32) for operand in operands)
    return LogitsObjective(term, as_pytree(model), operands, _used(aux_weight))


def _used(aux_weight):
    """None, which is static in ``jit``, for a weight of 0: the heads are then not computed."""
    return None if isinstance(aux_weight, (int, float)) and aux_weight == 0 else aux_weight


def cross_entropy(model: Model, labels, aux_weight=0.0) -> LogitsObjective:
    """Cross-entropy to the labels (untargeted PGD, FGSM).

    Args:
      model: callable pytree, or plain function, from images to logits or to an object with
        ``logits`` and ``aux_logits``.
      labels: class numbers, [batch].
      aux_weight: weight of the auxiliary heads' mean, 2 in the paper's "with p"; 0 ignores them.
    """
    return _objective(cross_entropy_term, model, (labels,), aux_weight)


def targeted_cross_entropy(model: Model, targets, aux_weight=0.0) -> LogitsObjective:
    """Minus the cross-entropy to ``targets``. See ``cross_entropy``."""
    return _objective(targeted_cross_entropy_term, model, (targets,), aux_weight)


def margin(model: Model, labels, aux_weight=0.0) -> LogitsObjective:
    """``max_{k != y} z_k - z_y``, the paper's "C&W" attack. See ``cross_entropy``."""
    return _objective(margin_term, model, (labels,), aux_weight)


def targeted_margin(model: Model, labels, targets, aux_weight=0.0) -> LogitsObjective:
    """``z_t - z_y``. See ``cross_entropy``."""
    return _objective(targeted_margin_term, model, (labels, targets), aux_weight)


def dlr(model: Model, labels, aux_weight=0.0) -> LogitsObjective:
    """Difference of logits ratio, for at least 3 classes. See ``cross_entropy``."""
    return _objective(dlr_term, model, (labels,), aux_weight)


def targeted_dlr(model: Model, labels, targets, aux_weight=0.0) -> LogitsObjective:
    """Targeted difference of logits ratio, for at least 4 classes. See ``cross_entropy``."""
    return _objective(targeted_dlr_term, model, (labels, targets), aux_weight)


def kl_divergence(model: Model, reference, aux_weight=0.0) -> KLObjective:
    """``KL(p_reference || p(images))``, which TRADES' attack ascends.

    At the natural image itself its gradient is 0: start from ``gaussian_start``.

    Args:
      model: see ``cross_entropy``.
      reference: the fixed (natural) outputs: logits [batch, classes], or an object with ``logits``
        and ``aux_logits``. Log-probabilities serve as well.
      aux_weight: see ``cross_entropy``; each head is compared with the reference's same head.
    """
    logits, aux_logits = read_outputs(reference)
    return KLObjective(as_pytree(model), logits, aux_logits, _used(aux_weight))


LOSSES: dict[str, Callable[..., Objective]] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
"""Names of untargeted objectives, each built of ``(model, labels)``."""

TARGETED_LOSSES: dict[str, Callable[..., Objective]] = {
    "targeted_ce": lambda model, labels, targets: targeted_cross_entropy(model, targets),
    "targeted_dlr": targeted_dlr,
    "targeted_margin": targeted_margin,
}
"""Names of targeted objectives, each built of ``(model, labels, targets)``."""


def objective_of(
    loss: str | Objective, model: Model, labels: Labels, targets: Labels | None = None
) -> Objective:
    """Build the objective that an attack's ``loss`` names; an objective is returned as it is.

    Raises:
      ValueError: an unknown name, a targeted loss without targets, or the reverse.
    """
    if not isinstance(loss, str):
        return loss
    if loss in LOSSES:
        if targets is not None:
            raise ValueError(f"loss={loss!r} takes no targets; {', '.join(TARGETED_LOSSES)} do")
        return LOSSES[loss](model, labels)
    if loss not in TARGETED_LOSSES:
        allowed = ", ".join([*LOSSES, *TARGETED_LOSSES])
        raise ValueError(f"loss={loss!r}: allowed are {allowed}, or an objective")
    if targets is None:
        raise ValueError(f"loss={loss!r} needs targets")
    return TARGETED_LOSSES[loss](model, labels, targets)
