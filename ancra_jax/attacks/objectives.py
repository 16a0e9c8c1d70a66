"""What an attack ascends: per-example functions ``objective(images) -> [batch]``.

Most are a term of the logits, built by a function of the term's name: ``cross_entropy(model,
labels)``, ``targeted_margin(model, labels, targets)`` ... Such an objective is a pytree that holds
the model and the class numbers, so it travels through ``jit`` as an argument: other weights, labels
or targets do not compile again. Any other callable pytree of the same signature is an objective
too.

With ``aux_weight`` > 0 the term is also taken over the model's auxiliary heads, by
``combine_heads`` (the paper attacks them with a weight of 2). With 0, the default, the final logits
alone count.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from ancra_jax.attacks.arguments import Number, as_classes, as_number, check_callable
from ancra_jax.attacks.model import (
    Logits,
    Model,
    WithKeys,
    as_pytree,
    fast_outputs,
    float32_logits,
    read_outputs,
)
from ancra_jax.attacks.threat_models import TINY
from ancra_jax.ops.fast_convolutions import with_fast_convolutions
from ancra_jax.ops.images import AnyLabels, Images, Keys, Labels, Values
from ancra_jax.ops.pytree import pytree_dataclass
from ancra_jax.ops.target import platform

Objective = Callable[[Images], Values]
Evaluation = tuple[Values, Images, Logits]  # objective, its gradients, the judging model's logits


def combine_heads(
    term: Callable[[Any], Array], logits: PyTree[Array], aux_logits: PyTree[Array], weight: Number
) -> Array:
    """Take a term over the final logits and the auxiliary heads.

    Computes ``term(f') + weight * mean_k term(p_k)``, written with a hat in the ANCRA paper, where
    ``weight`` is lambda_aux = 2.

    Args:
      term: function of one head's logits [batch, classes] to an array of any shape.
      logits: the final logits, or a pytree of such arrays that ``term`` takes.
      aux_logits: the same structure with one more leading axis, the heads; without any (length 0)
        the result is ``term(logits)``.
      weight: weight of the heads' mean.
    """
    final = term(logits)
    if jax.tree.leaves(aux_logits)[0].shape[0] == 0:
        return final
    return final + weight * jnp.mean(jax.vmap(term)(aux_logits), axis=0)


def cross_entropy_term(logits: Logits, labels: Labels) -> Values:
    """Return ``-log softmax(z)_y``."""
    return jax.nn.logsumexp(logits, axis=-1) - pick(logits, labels)


def targeted_cross_entropy_term(logits: Logits, targets: Labels) -> Values:
    """Return ``log softmax(z)_t``; ascending it descends the cross-entropy to the target."""
    return -cross_entropy_term(logits, targets)


def margin_term(logits: Logits, labels: Labels) -> Values:
    """Return ``max_{k != y} z_k - z_y`` (Carlini & Wagner); positive where misclassified."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return others - pick(logits, labels)


def targeted_margin_term(logits: Logits, labels: Labels, targets: Labels) -> Values:
    """Return ``z_t - z_y``."""
    return pick(logits, targets) - pick(logits, labels)


def dlr_term(logits: Logits, labels: Labels) -> Values:
    """Return the DLR, ``-(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12)``.

    ``z_(i)`` is the i-th largest logit. Invariant to shift and scale of the logits.

    References:
      Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks, ICML 2020, eq. 6.
    """
    largest = _largest(logits, 3, "DLR")
    return margin_term(logits, labels) / (largest[:, 0] - largest[:, 2] + TINY)


def targeted_dlr_term(logits: Logits, labels: Labels, targets: Labels) -> Values:
    """Return ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`` (same paper, eq. 7)."""
    largest = _largest(logits, 4, "targeted DLR")
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + TINY
    return targeted_margin_term(logits, labels, targets) / scale


def kl_term(logits: Logits, reference: Logits) -> Values:
    """Return ``KL(softmax(reference) || softmax(z))``."""
    return optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
    )


def pick(logits: Logits, classes: Labels) -> Values:
    """Return every row's value at its class.

    The gradient of an index would be a scatter, which is a kernel of its own on a GPU.
    """
    chosen = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(chosen, logits, 0), axis=-1)


def _largest(logits: Logits, count: int, name: str) -> Float[Array, "batch count"]:
    if logits.shape[-1] < count:
        raise ValueError(
            f"loss: {name} needs at least {count} classes, the model has {logits.shape[-1]}: "
            "use the margin"
        )
    return jax.lax.top_k(logits, count)[0]


@pytree_dataclass(static=("term",))
class LogitsObjective:
    """A term of the logits of every example."""

    # Of ``(logits [batch, classes], *operands)``, to one number per example; static in ``jit``, so
    # a module-level function.
    term: Callable[..., Values]
    model: Model
    operands: tuple[Array, ...]  # arrays over the batch, such as labels and targets
    aux_weight: Number | None = None  # weight of the auxiliary heads' mean; None ignores them
    # Fixed final logits and auxiliary logits, which the term takes head by head between the logits
    # and the operands; empty if it takes none.
    reference: tuple[Array, ...] = ()

    def __call__(self, images: Images) -> Values:
        """Evaluate the objective."""
        return self.values_and_logits(images)[0]

    def values_and_logits(self, images: Images) -> tuple[Values, Logits]:
        """Evaluate the objective and return the model's final logits with it."""
        logits, aux_logits = fast_outputs(self.model, images)
        for classes in self.operands:
            as_classes(classes, len(logits), logits.shape[1], "class numbers of the objective")
        if self.reference and self.reference[0].shape != logits.shape:
            found = f"{self.reference[0].shape}, logits {logits.shape}"
            raise ValueError(f"reference has logits of shape {found}: expected equal shapes")

        def value(head: tuple[Array, ...]) -> Values:
            return self.term(*head, *self.operands)

        final, aux = (logits, *self.reference[:1]), (aux_logits, *self.reference[1:])
        if self.aux_weight is None:
            return value(final), logits
        return combine_heads(value, final, aux, self.aux_weight), logits

    def among(self, rows: Int[np.ndarray, "chosen"]) -> "LogitsObjective":
        """Return the objective of some of the examples."""
        return replace(
            self,
            operands=tuple(jnp.asarray(np.asarray(x)[rows]) for x in self.operands),
            reference=tuple(jnp.asarray(np.asarray(z)[..., rows, :]) for z in self.reference),
        )


def _on_classes(
    term: Callable[..., Values], model: Model, aux_weight: Number, **classes: AnyLabels
) -> LogitsObjective:
    operands = tuple(
        jnp.asarray(as_classes(numbers, None, name=name)) for name, numbers in classes.items()
    )
    aux_weight = as_number(aux_weight, "aux_weight", closed=True)
    # None is static in ``jit``, so that heads of weight 0 are not computed at all.
    unused = isinstance(aux_weight, float) and aux_weight == 0
    return LogitsObjective(term, as_pytree(model), operands, None if unused else aux_weight)


def cross_entropy(model: Model, labels: AnyLabels, aux_weight: Number = 0.0) -> LogitsObjective:
    """Return the cross-entropy to the labels."""
    return _on_classes(cross_entropy_term, model, aux_weight, labels=labels)


def targeted_cross_entropy(
    model: Model, targets: AnyLabels, aux_weight: Number = 0.0
) -> LogitsObjective:
    """Return minus the cross-entropy to the targets."""
    return _on_classes(targeted_cross_entropy_term, model, aux_weight, targets=targets)


def margin(model: Model, labels: AnyLabels, aux_weight: Number = 0.0) -> LogitsObjective:
    """Return ``max_{k != y} z_k - z_y``, the paper's "C&W" attack."""
    return _on_classes(margin_term, model, aux_weight, labels=labels)


def targeted_margin(
    model: Model, labels: AnyLabels, targets: AnyLabels, aux_weight: Number = 0.0
) -> LogitsObjective:
    """Return ``z_t - z_y``."""
    return _on_classes(targeted_margin_term, model, aux_weight, labels=labels, targets=targets)


def dlr(model: Model, labels: AnyLabels, aux_weight: Number = 0.0) -> LogitsObjective:
    """Return the difference of logits ratio, for at least 3 classes; see ``dlr_term``."""
    return _on_classes(dlr_term, model, aux_weight, labels=labels)


def targeted_dlr(
    model: Model, labels: AnyLabels, targets: AnyLabels, aux_weight: Number = 0.0
) -> LogitsObjective:
    """Return the targeted difference of logits ratio, for at least 4 classes."""
    return _on_classes(targeted_dlr_term, model, aux_weight, labels=labels, targets=targets)


def kl_divergence(model: Model, reference: Any, aux_weight: Number = 0.0) -> LogitsObjective:
    """Return ``KL(p_reference || p(images))``, which TRADES' attack ascends.

    At the natural image itself its gradient is 0: start from ``attacks.gaussian_start``.

    ``reference`` has the fixed (natural) outputs, in the form that a model returns;
    log-probabilities serve as well. Every head is compared with the same head of it.
    """
    objective = _on_classes(kl_term, model, aux_weight)
    return replace(objective, reference=read_outputs(reference))


_NUMBERED = (  # in the order of _by_number
    cross_entropy_term,
    margin_term,
    targeted_margin_term,
    dlr_term,
    targeted_dlr_term,
)


def in_one_program(objective: Objective) -> Objective:
    """Return an objective with equal values whose term is chosen by data, if it is a usual one.

    So one compiled program serves the cross-entropy, and margin and DLR, targeted or not.
    """
    if not isinstance(objective, LogitsObjective) or objective.aux_weight is not None:
        return objective
    if objective.term not in _NUMBERED:
        return objective
    labels, targets = objective.operands[0], objective.operands[-1]
    number = jnp.full_like(labels, _NUMBERED.index(objective.term))
    return replace(objective, term=_by_number, operands=(labels, targets, number))


def _by_number(logits: Logits, labels: Labels, targets: Labels, number: Labels) -> Values:
    terms = [
        lambda z: cross_entropy_term(z, labels),
        lambda z: margin_term(z, labels),
        lambda z: targeted_margin_term(z, labels, targets),
        lambda z: dlr_term(z, labels),
        lambda z: targeted_dlr_term(z, labels, targets),
    ]
    possible = terms[: logits.shape[-1] + 1]  # the last needs 4 classes, the one before it 3
    return jax.lax.switch(number[0], possible, logits)


LOSSES: dict[str, Callable[..., Objective]] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
"""Untargeted losses by name, each built of ``(model, labels)``."""

TARGETED_LOSSES: dict[str, Callable[..., Objective]] = {
    "targeted_ce": lambda model, labels, targets: targeted_cross_entropy(model, targets),
    "targeted_dlr": targeted_dlr,
    "targeted_margin": targeted_margin,
}
"""Targeted losses by name, each built of ``(model, labels, targets)``."""


def objective_of(
    loss: str | Objective, model: Model, labels: Labels, targets: Labels | None = None
) -> Objective:
    """Build the objective that an attack's ``loss`` names; return an objective as it is.

    Raises:
      ValueError: an unknown name, a targeted loss without targets, or the reverse.
    """
    if not isinstance(loss, str):
        check_callable(loss, "loss", "a name, or an objective: images to one number per image")
        return loss if isinstance(loss, LogitsObjective) else as_pytree(loss, "loss")
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


def value_and_input_gradient(objective: Objective, images: Images) -> tuple[Values, Images]:
    """Return the objective of every example and its gradient; parameters receive none."""
    (values,), gradients = _differentiated(lambda x: (objective(x),), images)
    return values, gradients


def _differentiated(
    function: Callable[[Images], tuple[Values, *tuple[Any, ...]]], images: Images
) -> tuple[tuple[Any, ...], Images]:
    """Return what a function returns, and the gradient of the sum of the first part of it."""

    def total(x: Images) -> tuple[Float[Array, ""], tuple[Any, ...]]:
        found = function(x)
        return jnp.sum(found[0]), found

    differentiate = jax.value_and_grad(with_fast_convolutions(total), has_aux=True)
    (_, found), gradients = differentiate(images)
    return found, gradients


@pytree_dataclass(static=("draws",))
class Evaluator:
    """Evaluates an objective and the judging model."""

    objective: Objective  # what the attack ascends
    # The model that has to be fooled; None if it is the objective's own, whose forward pass then
    # serves both.
    judge: Model | None
    # One per example if the model is randomised and is called as ``model(images, key=key)``. Values
    # and gradients are then averaged over the draws of a step, the logits are the last draw's.
    keys: Keys | None = None
    draws: int = 1

    def __call__(self, images: Images, step: Int[Array, ""]) -> Evaluation:
        """Evaluate at ``images``; only a randomised model depends on the number of the step."""
        if self.keys is not None:
            return self._averaged(images, step * self.draws, self.keys)
        if self.judge is not None:
            values, gradients = value_and_input_gradient(self.objective, images)
            return values, gradients, float32_logits(self.judge, images)
        (values, logits), gradients = _differentiated(self._own.values_and_logits, images)
        return values, gradients, logits

    def without_gradients(self, images: Images) -> tuple[Values, Logits]:
        """Return the objective and the judging model's logits; the model is deterministic."""
        if self.judge is not None:
            return self.objective(images), float32_logits(self.judge, images)
        return with_fast_convolutions(self._own.values_and_logits)(images)

    def among(self, rows: Int[np.ndarray, "chosen"]) -> "Evaluator":
        """Return the evaluator of some of the examples, where ``judge`` is None."""
        return replace(self, objective=self._own.among(rows))

    @property
    def _own(self) -> LogitsObjective:
        return cast(LogitsObjective, self.objective)

    def _averaged(self, images: Images, first: Int[Array, ""], keys: Keys) -> Evaluation:
        def one_draw(draw: Int[Array, ""]) -> Evaluation:
            def drawn(model: Model) -> Model:
                return WithKeys(model, keys).draw(first + draw)

            objective = replace(self._own, model=drawn(self._own.model))
            judge = None if self.judge is None else drawn(self.judge)
            return Evaluator(objective, judge)(images, first)

        draws = jnp.arange(self.draws)
        # A convolution's gradient inside a compiled loop is slow on the CPU backend.
        on_cpu = platform() == "cpu"
        found = jax.vmap(one_draw)(draws) if on_cpu else jax.lax.map(one_draw, draws)
        values, gradients, logits = found
        return values.mean(axis=0), gradients.mean(axis=0), logits[-1]


def evaluator(
    objective: Objective, judge: Model, keys: Keys | None = None, draws: int = 1
) -> Evaluator:
    """Pair an objective with the judging model; equal models are called once.

    Raises:
      ValueError: ``keys`` for an objective that does not call a randomised model.
    """
    if isinstance(objective, LogitsObjective):
        own = _is_same(objective.model, judge)
        return Evaluator(objective, None if own else judge, keys, 1 if keys is None else draws)
    if keys is not None:
        raise ValueError(f"loss={objective!r}: a randomised model needs one of the named losses")
    return Evaluator(objective, judge)


def _is_same(one: Model, other: Model) -> bool:
    structure: Any = jax.tree.structure(one)
    if structure != jax.tree.structure(other):
        return False
    return all(x is y for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
