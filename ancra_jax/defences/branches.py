"""The branches of reverse attention: pairs of masks, each of which makes the network a smooth one.

Inference takes one of ``classes ** 2`` branches (i, j): the first mask is class i's row, the second
class j's. It takes (i, j) exactly where i is the largest auxiliary logit of the first block and j,
under the first mask i, that of the second.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ancra_jax.attacks.model import Model, as_pytree, model_outputs
from ancra_jax.attacks.objectives import Logits
from ancra_jax.defences.attention_objective import Masks, Rows, branch_terms
from ancra_jax.ops.images import Images, Labels, Values

Rank = Int[Array, ""]

_AT_ONCE = 10  # first masks that are computed together


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
