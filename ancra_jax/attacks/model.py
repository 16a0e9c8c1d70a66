"""What an attack asks of a model: a callable pytree from images to logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Images = Float[Array, "batch height width channels"]
LogitsFn = Callable[[Images], Float[Array, "batch classes"]]


def as_pytree(logits_fn: LogitsFn) -> LogitsFn:
    """Returns ``logits_fn`` as a pytree, so that it can be an argument of ``jit``.

    A callable that is a pytree already (``jax.tree_util.Partial``, an Equinox or NNX module) is
    returned as it is: its arrays are traced, and another checkpoint does not compile again. A plain
    function becomes a ``Partial`` of itself: its closure is a constant of the compiled program.
    """
    if jax.tree_util.all_leaves([logits_fn]):
        return jax.tree_util.Partial(logits_fn)
    return logits_fn


def float32_logits(logits_fn: LogitsFn, images: Images) -> Float[Array, "batch classes"]:
    """Calls the model; attacks compute in float32 whatever the model's own precision."""
    return logits_fn(images).astype(jnp.float32)


def misclassified(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Bool[Array, "batch"]:
    """Whether the predicted class is not the label; non-finite logits never count."""
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return (jnp.argmax(logits, axis=-1) != labels) & finite


def example_keys(key: Key[Array, ""], indices: Int[Array, "batch"]) -> Key[Array, "batch"]:
    """One key per example, derived from its data-set index and from nothing else."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
