"""A batch in parts that follow one another: the step of the whole batch in the memory of a part.

Part ``j`` of ``n`` are the examples ``j, n + j, 2 n + j, ...``, so that every device keeps its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ancra_jax.methods.core import Attacked, LossOfParams, MethodState, Metrics
from ancra_jax.ops.images import Images
from ancra_jax.types import Scalar

Part = Int[Array, ""] | int
PartLoss = Callable[[PyTree, Part, PyTree], tuple[Scalar, tuple[PyTree, Metrics]]]
"""``(params, part, carried) -> (loss, (carried, metrics))``; ``carried`` goes from part to part."""


def take(tree: PyTree, part: Part, parts: int, size: int) -> PyTree:
    """Return a part of all arrays over a batch of ``size`` examples; all else as it is."""
    if parts == 1:
        return tree

    def taken(leaf: Any) -> Any:
        if not (isinstance(leaf, jax.Array) and leaf.shape[:1] == (size,)):
            return leaf
        split = leaf.reshape(size // parts, parts, *leaf.shape[1:])
        return jax.lax.dynamic_index_in_dim(split, part, axis=1, keepdims=False)

    return jax.tree.map(taken, tree)


def attack(attack_part: Callable[[Part], Attacked], state: MethodState, parts: int) -> Attacked:
    """Attack part after part, each from the same state; return the images in the batch's order.

    The method's state changes by the mean of its changes in the parts.
    """
    if parts == 1:
        return attack_part(0)

    def body(changes: MethodState, part: Part) -> tuple[MethodState, dict[str, Images]]:
        attacked, new = attack_part(part)
        return jax.tree.map(lambda total, a, b: total + (a - b), changes, new, state), attacked

    zeros = jax.tree.map(jnp.zeros_like, state)
    changes, attacked = jax.lax.scan(body, zeros, jnp.arange(parts))
    whole = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])  # noqa: E731
    moved = lambda old, total: old + (total / parts).astype(old.dtype)  # noqa: E731
    return jax.tree.map(whole, attacked), jax.tree.map(moved, state, changes)


def mean_loss(loss_of_part: PartLoss, carried: PyTree, parts: int) -> LossOfParams:
    """Return the mean over the parts, ``params -> (loss, (carried, metrics))``.

    Its gradient, the mean of theirs, is computed in the same loop, so that only what one part needs
    is in memory. It can be differentiated once, in reverse mode.
    """
    if parts == 1:
        return lambda params: loss_of_part(params, 0, carried)

    def with_gradient(params: PyTree) -> tuple[tuple[Scalar, tuple[PyTree, Metrics]], PyTree]:
        def body(before: PyTree, part: Part) -> tuple[PyTree, PyTree]:
            carried, total = before
            differentiated = jax.value_and_grad(loss_of_part, has_aux=True)
            (value, (carried, metrics)), gradient = differentiated(params, part, carried)
            return (carried, jax.tree.map(jnp.add, total, gradient)), (value, metrics)

        zeros = jax.tree.map(jnp.zeros_like, params)
        (last, total), found = jax.lax.scan(body, (carried, zeros), jnp.arange(parts))
        value, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
        return (value, (last, metrics)), jax.tree.map(lambda x: x / parts, total)

    @jax.custom_vjp
    def loss(params: PyTree) -> tuple[Scalar, tuple[PyTree, Metrics]]:
        return with_gradient(params)[0]

    def backward(gradient: PyTree, cotangent: PyTree) -> tuple[PyTree]:
        return (jax.tree.map(lambda leaf: cotangent[0] * leaf, gradient),)

    loss.defvjp(with_gradient, backward)
    return loss
