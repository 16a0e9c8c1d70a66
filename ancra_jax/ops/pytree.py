"""Dataclasses as pytrees, callables that fold, and rows chosen from two pytrees."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ancra_jax.errors import UsageError
from ancra_jax.ops.images import Flags

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(
    *, static: tuple[str, ...] = (), left_out: tuple[str, ...] = ()
) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass and a pytree.

    Not ``jax.tree_util.register_dataclass``: the tree structures of two classes registered by it
    compare equal when their fields look alike (jax 0.10), although their hashes differ. Every now
    and then ``jit`` then takes one for the other, an ``L2`` ball for an ``Linf`` ball, and runs the
    program it compiled for that.

    ``static`` names fields that are constants of a compiled program; others hold pytrees of arrays.
    Fields ``left_out`` are no part of the pytree: in what JAX makes of it they have their defaults.
    """

    def register(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True)(cls)
        names = [field.name for field in fields(made) if field.name not in static + left_out]

        def flatten(tree: T) -> tuple[Any, Any]:
            children = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in names]
            return children, tuple(getattr(tree, name) for name in static)

        def unflatten(aux: Any, children: Any) -> T:
            # Not by ``made(...)``, which may check its fields: leaves are anything in JAX's hands.
            tree = object.__new__(made)
            for name, value in zip([*names, *static], [*children, *aux], strict=True):
                object.__setattr__(tree, name, value)
            return tree

        jax.tree_util.register_pytree_with_keys(made, flatten, unflatten)
        return made

    return register


class Foldable:
    """A callable pytree with a second form of the same values up to rounding, which is cheaper.

    The loops of attacks call the second form, made once before them; what judges calls the first.
    """

    def folded(self) -> "Foldable":
        """Return the cheaper form; itself if it has that already."""
        raise NotImplementedError


def _is_foldable(node: Any) -> bool:
    return isinstance(node, Foldable)


def fold(tree: T) -> T:
    """Return a pytree with everything in it that is `Foldable` in its cheaper form."""
    if not has_foldable(tree):
        return tree
    return jax.tree.map(
        lambda node: node.folded() if _is_foldable(node) else node, tree, is_leaf=_is_foldable
    )


def has_foldable(tree: Any) -> bool:
    """Return whether anything in a pytree is `Foldable`."""
    return any(map(_is_foldable, jax.tree.leaves(tree, is_leaf=_is_foldable)))


def check_finite(tree: Any, field: str) -> None:
    """Refuse arrays that are not finite with a UsageError that begins with ``field``."""
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        if not np.isfinite(array).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UsageError(f"{field}: {name} has NaN or infinite values")


def select(mask: Flags, chosen: T, other: T) -> T:
    """Return the rows of ``chosen`` where ``mask`` holds, else those of ``other``.

    Both are pytrees of arrays over the batch.
    """

    def choose(x: Array, y: Array) -> Array:
        return jnp.where(jnp.expand_dims(mask, range(1, x.ndim)), x, y)

    return jax.tree.map(choose, chosen, other)
