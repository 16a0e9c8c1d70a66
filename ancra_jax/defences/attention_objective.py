"""The objectives of all attacks on reverse attention, as one function of traced operands.

What an attack forces, relaxes and ascends is data: one compiled program, in which the network
occurs once, serves them all.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ancra_jax.attacks.model import Images, LogitsFn, model_outputs
from ancra_jax.attacks.objectives import (
    cross_entropy_term,
    margin_term,
    targeted_dlr_term,
    targeted_margin_term,
)
from ancra_jax.ops.pytree import pytree_dataclass

Scalar = Any
"""A NumPy scalar or a traced one, of one dtype in all attacks: else they would share no program."""

LOSSES = ("cross_entropy", "margin", "targeted_margin", "targeted_dlr", "class_margin", "branch")
FREE, LABEL, TARGET = range(3)


@pytree_dataclass()
class Mask:
    """An attention rule that forces, softens or switches off the masks.

    Attributes:
      forced: per block and example the class whose row is the mask; -1 leaves it to what follows.
      temperature: of the softmax that mixes the rows.
      hard: 1 takes the predicted class's row, as the network does, 0 the mixture.
      gradient: 1 lets the gradient pass through the mixture, 0 through none.
      off: 1 replaces the mask by ones.
    """

    forced: Int[Array, "blocks batch"]
    temperature: Scalar
    hard: Scalar
    gradient: Scalar
    off: Scalar

    def __call__(
        self,
        aux_logits: Float[Array, "batch classes"],
        class_rows: Float[Array, "classes features"],
        labels: Int[Array, "batch"] | None,
        block: int,
    ) -> Float[Array, "batch features"]:
        """The mask of every example."""
        classes = len(class_rows)
        chosen = jax.nn.one_hot(jnp.argmax(aux_logits, axis=-1), classes)
        soft = jax.nn.softmax(aux_logits / self.temperature)
        still = jax.lax.stop_gradient(soft)
        free = self.hard * chosen + (1 - self.hard) * still + self.gradient * (soft - still)
        forced = self.forced[block][:, None]
        weights = jnp.where(forced >= 0, jax.nn.one_hot(forced[:, 0], classes), free)
        return (1 - self.off) * (weights @ class_rows) + self.off


@pytree_dataclass()
class Ascent:
    """What one attack does to the network and ascends; all of it traced.

    Attributes:
      loss: position in ``LOSSES``.
      heads: weight of the loss on a_1, a_2 and f.
      branch: per block whether the mask is free, the label's row or the target's.
      temperature: see ``Mask``, as are the next three.
      hard: 1 for the network's own choice where a mask is free.
      gradient: 1 for a gradient through the softmax.
      off: 1 for no masks.
      softness: of the soft minimum in the loss ``'branch'``; 0 is the minimum.
    """

    loss: Scalar
    heads: Float[np.ndarray, "3"] | Float[Array, "3"]
    branch: Int[np.ndarray, "2"] | Int[Array, "2"]
    temperature: Scalar
    hard: Scalar
    gradient: Scalar
    off: Scalar
    softness: Scalar


def ascent(
    loss: str,
    heads: Sequence[float | int] = (0, 0, 1),
    *,
    branch: tuple[int, int] = (FREE, FREE),
    temperature: float = 1.0,
    hard: bool = True,
    gradient: bool = False,
    off: bool = False,
    softness: float = 0.0,
) -> Ascent:
    """An ``Ascent`` with leaves of the dtypes that all share; by default the network as it is."""
    return Ascent(
        loss=np.int32(LOSSES.index(loss)),
        heads=np.asarray(heads, np.float32),
        branch=np.asarray(branch, np.int32),
        temperature=np.float32(temperature),
        hard=np.float32(hard),
        gradient=np.float32(gradient),
        off=np.float32(off),
        softness=np.float32(softness),
    )


@pytree_dataclass()
class AttentionObjective:
    """An ``Ascent`` on a batch.

    Attributes:
      predict: a network with reverse attention on two blocks; called with ``attention=``.
      ascent: what to do.
      labels: class numbers.
      targets: class numbers; the labels where the attack has no target.
    """

    predict: LogitsFn
    ascent: Ascent
    labels: Int[Array, "batch"]
    targets: Int[Array, "batch"]

    def __call__(self, images: Images) -> Float[Array, "batch"]:
        """Evaluates the objective."""
        a = self.ascent
        forced = _classes(a.branch, self.labels, self.targets)
        mask = Mask(forced, a.temperature, a.hard, a.gradient, a.off)
        logits, aux_logits = model_outputs(lambda x: self.predict(x, attention=mask), images)
        heads = jnp.concatenate([aux_logits, logits[None]])

        def weighted(term, *operands):
            return a.heads @ jax.vmap(lambda head: term(head, *operands))(heads)

        branch_classes = jnp.where(forced >= 0, forced, self.labels)
        dlr = targeted_dlr_term if logits.shape[-1] >= 4 else targeted_margin_term
        return jax.lax.switch(
            a.loss,
            [
                lambda: weighted(cross_entropy_term, self.labels),
                lambda: weighted(margin_term, self.labels),
                lambda: weighted(targeted_margin_term, self.labels, self.targets),
                lambda: weighted(dlr, self.labels, self.targets),
                lambda: weighted(class_margin_term, self.targets),
                lambda: soft_minimum(
                    branch_terms(aux_logits, logits, branch_classes, self.labels), a.softness
                ),
            ],
        )


@pytree_dataclass()
class Goal:
    """Makes the objective of a batch: the ``objective`` of a ``SurrogateAttack``."""

    predict: LogitsFn
    ascent: Ascent

    def __call__(self, labels, targets) -> AttentionObjective:
        """The objective for these labels, and targets if there are any."""
        targets = labels if targets is None else targets
        return AttentionObjective(self.predict, self.ascent, labels, targets)


def class_margin_term(
    logits: Float[Array, "batch classes"], classes: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """``z_c - max_{q != c} z_q``: positive where ``c`` is the prediction."""
    return -margin_term(logits, classes)


def branch_terms(
    aux_logits: Float[Array, "2 batch classes"],
    logits: Float[Array, "batch classes"],
    classes: Int[Array, "2 batch"],
    labels: Int[Array, "batch"],
) -> Float[Array, "3 batch"]:
    """What must be positive for a branch to be taken and to be wrong.

    Args:
      aux_logits: of both blocks, under the branch's masks.
      logits: final logits under them.
      classes: the branch, a class for each block.
      labels: class numbers.

    Returns:
      ``a_1[i] - max_{q != i} a_1[q]``, ``a_2[j] - max_{q != j} a_2[q]`` and
      ``max_{q != y} f_q - f_y``.
    """
    gates = jax.vmap(class_margin_term)(aux_logits, classes)
    return jnp.concatenate([gates, margin_term(logits, labels)[None]])


def soft_minimum(terms: Float[Array, "terms batch"], softness: Scalar) -> Float[Array, "batch"]:
    """``-s log sum exp(-t / s)`` over the terms; the minimum for ``s = 0``."""
    s = jnp.maximum(softness, 1e-6)
    return -s * jax.nn.logsumexp(-terms / s, axis=0)


def _classes(branch, labels, targets):
    """The class that each block's mask is forced to, -1 where it is free."""
    choices = jnp.stack([jnp.full_like(labels, -1), labels, targets])
    return choices[branch]
