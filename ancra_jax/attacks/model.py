"""What an attack asks of a model: a callable pytree from images to logits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ancra_jax.ops.fast_convolutions import with_fast_convolutions
from ancra_jax.ops.pytree import pytree_dataclass

Images = Float[Array, "batch height width channels"]
AnyImages = Images | Float[np.ndarray, "batch height width channels"]
AnyLabels = Int[Array, "batch"] | Int[np.ndarray, "batch"]
AnyFlags = Bool[Array, "batch"] | Bool[np.ndarray, "batch"]
Model = Callable[..., Any]
"""``images -> logits`` [batch, classes], or an object with ``logits`` and, if the model has
auxiliary heads, ``aux_logits`` [heads, batch, classes]."""
LogitsFn = Model


def as_pytree(model: Model) -> Model:
    """Returns ``model`` as a pytree of arrays, so that it can be an argument of ``jit``.

    A callable that is a pytree already (``jax.tree_util.Partial``, an Equinox or NNX module) has
    its arrays traced: another checkpoint does not compile again. Its other leaves (an Equinox
    module's activation functions and flags) are constants of the compiled program. A plain function
    becomes a ``Partial`` of itself: its whole closure is a constant.
    """
    if jax.tree_util.all_leaves([model]):
        return jax.tree_util.Partial(model)
    leaves, structure = jax.tree.flatten(model)
    if all(_is_array(leaf) for leaf in leaves):
        return model
    constants = tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves)
    return PartlyStatic([leaf for leaf in leaves if _is_array(leaf)], constants, structure)


class _Array:
    """Stands for an array among constants."""


_ARRAY = _Array()


def _is_array(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


@pytree_dataclass(static=("constants", "structure"))
class PartlyStatic:
    """A callable pytree some of whose leaves are not arrays and must not be traced."""

    arrays: list[Any]
    constants: tuple[Any, ...]
    structure: Any

    def __call__(self, *args, **kwargs):
        """Calls the original callable."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.constants]
        return jax.tree.unflatten(self.structure, leaves)(*args, **kwargs)


def model_outputs(
    model: Model, images: Images
) -> tuple[Float[Array, "batch classes"], Float[Array, "heads batch classes"]]:
    """Calls the model; see ``read_outputs``."""
    return read_outputs(model(images))


def read_outputs(
    outputs: Any,
) -> tuple[Float[Array, "batch classes"], Float[Array, "heads batch classes"]]:
    """Reads what a model returned, in float32: attacks compute in it whatever the model's own.

    Args:
      outputs: logits, or an object with ``logits`` and perhaps ``aux_logits``.

    Returns:
      The final logits and the auxiliary heads' logits; without such heads their first axis is 0.
    """
    logits = jnp.asarray(getattr(outputs, "logits", outputs), jnp.float32)
    aux_logits = getattr(outputs, "aux_logits", None)
    if aux_logits is None:
        aux_logits = jnp.zeros((0, *logits.shape))
    return logits, jnp.asarray(aux_logits, jnp.float32)


def float32_logits(model: Model, images: Images) -> Float[Array, "batch classes"]:
    """The model's final logits, in float32, for the loops of the attacks."""
    return with_fast_convolutions(lambda x: model_outputs(model, x)[0])(images)


def misclassified(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Bool[Array, "batch"]:
    """Whether the predicted class is not the label; non-finite logits never count."""
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return (jnp.argmax(logits, axis=-1) != labels) & finite


@jax.jit
def example_keys(key: Key[Array, ""], indices: Int[Array, "batch"]) -> Key[Array, "batch"]:
    """One key per example, derived from its data-set index and from nothing else."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


@jax.jit
def fold_each(keys: Key[Array, "batch"], number: int | Int[Array, ""]) -> Key[Array, "batch"]:
    """Derives from every example's key a new one for a numbered purpose."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
