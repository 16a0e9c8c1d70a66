"""The objectives of all attacks on reverse attention, and the certificate of its branches.

Inference takes one of ``classes ** 2`` branches (i, j), each of which makes the network a smooth
one: the first mask is class i's row, the second class j's. It takes (i, j) exactly where i is the
largest auxiliary logit of the first block and j, under the first mask i, that of the second.

What an attack forces, relaxes and ascends is data: one compiled program, in which the network
occurs once, serves them all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ancra_jax.attacks import objectives
from ancra_jax.attacks.adaptive import ObjectiveOf
from ancra_jax.attacks.model import AuxLogits, Model, as_pytree, model_outputs
from ancra_jax.attacks.objectives import Logits, margin_term
from ancra_jax.ops.images import Images, Labels, Values
from ancra_jax.ops.pytree import pytree_dataclass

Scalar = Any
"""A NumPy scalar or a traced one, of one dtype in all attacks: else they would share no program."""

Rows = Float[Array, "classes features"]
Masks = Float[Array, "batch features"]
Classes = Int[Array, "2 batch"]
"""A class for each block and example."""
Rank = Int[Array, ""]

_AT_ONCE = 10  # first masks that are computed together

FREE, LABEL, TARGET = range(3)


def _targeted_dlr_term(logits: Logits, labels: Labels, targets: Labels) -> Values:
    dlr = logits.shape[-1] >= 4
    term = objectives.targeted_dlr_term if dlr else objectives.targeted_margin_term
    return term(logits, labels, targets)


# What is ascended on every head: a term of (logits, labels, targets).
_TERMS: dict[str, Callable[[Logits, Labels, Labels], Values]] = {
    "cross_entropy": lambda logits, labels, targets: objectives.cross_entropy_term(logits, labels),
    "margin": lambda logits, labels, targets: margin_term(logits, labels),
    "targeted_margin": objectives.targeted_margin_term,
    "targeted_dlr": _targeted_dlr_term,
    "class_margin": lambda logits, labels, targets: -margin_term(logits, targets),
}
LOSSES = (*_TERMS, "branch")


@pytree_dataclass()
class Ascent:
    """What one attack does to the network and ascends; all of it traced. See ``ascent``."""

    loss: Scalar  # position in ``LOSSES``
    heads: Float[np.ndarray, "3"] | Float[Array, "3"]  # weight of the loss on a_1, a_2 and f
    branch: Int[np.ndarray, "2"] | Int[Array, "2"]  # per block: FREE mask, LABEL's or TARGET's row
    temperature: Scalar = np.float32(1)  # of the softmax that mixes the rows of a free mask
    hard: Scalar = np.float32(1)  # 1 takes the predicted class's row, as the network does, 0 mixes
    gradient: Scalar = np.float32(0)  # 1 lets the gradient pass through the mixture, 0 through none
    off: Scalar = np.float32(0)  # 1 replaces the masks by ones
    softness: Scalar = np.float32(0)  # of the soft minimum in the loss 'branch'; 0 is the minimum


def ascent(
    loss: str,
    heads: Sequence[float | int] = (0, 0, 1),
    *,
    branch: tuple[int, int] = (FREE, FREE),
    **options: float | bool,
) -> Ascent:
    """Return an ``Ascent`` on one of ``LOSSES``, with leaves of the dtypes that all share.

    By default the network's own masks and final logits; ``options`` are the other attributes.
    """
    scalars = {name: np.float32(value) for name, value in options.items()}
    place = np.int32(LOSSES.index(loss))
    return Ascent(place, np.asarray(heads, np.float32), np.asarray(branch, np.int32), **scalars)


def _mask(
    what: Ascent, forced: Classes, aux_logits: Logits, class_rows: Rows, labels: Any, block: int
) -> Masks:
    """Force, soften or switch off a block's mask: an attention rule once the first two are bound.

    ``forced`` has the class whose row is the mask; -1 leaves the mask to the ascent.
    """
    classes = len(class_rows)
    chosen = jax.nn.one_hot(jnp.argmax(aux_logits, axis=-1), classes)
    soft = jax.nn.softmax(aux_logits / what.temperature)
    still = jax.lax.stop_gradient(soft)
    free = what.hard * chosen + (1 - what.hard) * still + what.gradient * (soft - still)
    rows = forced[block][:, None]
    weights = jnp.where(rows >= 0, jax.nn.one_hot(rows[:, 0], classes), free)
    return (1 - what.off) * (weights @ class_rows) + what.off


@pytree_dataclass()
class AttentionObjective:
    """An ``Ascent`` on a batch."""

    predict: Model  # a network with reverse attention on two blocks; called with ``attention=``
    ascent: Ascent
    labels: Labels
    targets: Labels  # the labels where the attack has no target

    def __call__(self, images: Images) -> Values:
        """Evaluate the objective."""
        free = jnp.full_like(self.labels, -1)
        forced = jnp.stack([free, self.labels, self.targets])[self.ascent.branch]
        rule = jax.tree_util.Partial(_mask, self.ascent, forced)
        logits, aux_logits = model_outputs(lambda x: self.predict(x, attention=rule), images)
        heads = jnp.concatenate([aux_logits, logits[None]])

        def weighted(term: Callable[..., Values]) -> Values:
            over_heads = jax.vmap(lambda head: term(head, self.labels, self.targets))
            return jnp.asarray(self.ascent.heads) @ over_heads(heads)

        def smallest() -> Values:
            branch = jnp.where(forced >= 0, forced, self.labels)
            terms = branch_terms(aux_logits, logits, branch, self.labels)
            # The soft minimum -s log sum exp(-t / s) tends to the minimum as s tends to 0.
            s = jnp.maximum(self.ascent.softness, 1e-6)
            return -s * jax.nn.logsumexp(-terms / s, axis=0)

        terms = [partial(weighted, term) for term in _TERMS.values()]
        return jax.lax.switch(self.ascent.loss, [*terms, smallest])


def goal(predict: Model, what: Ascent) -> ObjectiveOf:
    """Return the ``objective`` of a ``SurrogateAttack``: an ascent on any batch."""

    def objective_of(labels: Labels, targets: Labels | None) -> AttentionObjective:
        return AttentionObjective(predict, what, labels, labels if targets is None else targets)

    return objective_of


def branch_terms(
    aux_logits: AuxLogits, logits: Logits, branch: Classes, labels: Labels
) -> Float[Array, "3 batch"]:
    """Return what is positive where a branch is taken and is wrong; see ``branch_maximum``."""
    taken = -jax.vmap(margin_term)(aux_logits, branch)
    return jnp.concatenate([taken, margin_term(logits, labels)[None]])


def branch_maximum(
    predict: Model, images: Images, labels: Labels, ranks: int | None = None
) -> Values:
    """Return how far the best of all branches is from making the network err: the certificate.

    The maximum over all branches (i, j) of the smallest of ``a_1[i] - max_{q != i} a_1[q]``,
    ``a_2[j] - max_{q != j} a_2[q]`` and ``max_{q != y} f_q - f_y``, the latter two under the masks
    i and (i, j). It is > 0 exactly where the network errs, unless logits are equal: the network
    then follows ``argmax``, which takes the first, and the maximum is 0 if it errs, at most 0 if
    not.

    Args:
      predict: a network with reverse attention on two blocks, variables bound, called with
        ``attention=``.
      images, labels: pixels in [0, 1] and class numbers.
      ranks: only branches whose classes rank among the first so many; all if None. The sign is the
        same for any number, the time and memory grow with its square.
    """
    if ranks is None:
        ranks = jax.eval_shape(predict, images).logits.shape[-1]
    return _branch_maximum(as_pytree(predict), jnp.asarray(images), jnp.asarray(labels), ranks)


@partial(jax.jit, static_argnames="ranks")
def _branch_maximum(predict: Model, images: Images, labels: Labels, ranks: int) -> Values:
    def value(first: Rank, second: Rank) -> Values:
        rule = jax.tree_util.Partial(_ranked_row, (first, second))
        logits, aux_logits = model_outputs(lambda x: predict(x, attention=rule), images)
        branch = jnp.stack([_ranked(first, aux_logits[0]), _ranked(second, aux_logits[1])])
        return jnp.min(branch_terms(aux_logits, logits, branch, labels), axis=0)

    # Under vmap all that comes before a mask is computed once.
    numbers = jnp.arange(ranks)
    over_second = jax.vmap(value, in_axes=(None, 0))
    values = jax.lax.map(lambda first: over_second(first, numbers), numbers, batch_size=_AT_ONCE)
    return jnp.max(values, axis=(0, 1))


def _ranked_row(
    ranks: tuple[Rank, Rank], aux_logits: Logits, class_rows: Rows, labels: Any, block: int
) -> Masks:
    return class_rows[_ranked(ranks[block], aux_logits)]


def _ranked(rank: Rank, aux_logits: Logits) -> Labels:
    """Return the classes of a rank; of equal logits the smaller class comes first."""
    return jnp.argsort(-aux_logits, axis=-1, stable=True)[:, rank]
