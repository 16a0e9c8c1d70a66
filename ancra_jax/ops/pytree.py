"""Dataclasses as pytrees."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(*, static: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass and a pytree.

    Not ``jax.tree_util.register_dataclass``: the tree structures of two classes registered by it
    compare equal when their fields look alike (jax 0.10), although their hashes differ. Every now
    and then ``jit`` then takes one for the other, an ``L2`` ball for an ``Linf`` ball, and runs the
    program it compiled for that.

    ``static`` names fields that are constants of a compiled program; others hold pytrees of arrays.
    """

    def register(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True)(cls)
        names = [field.name for field in fields(made) if field.name not in static]
        constants = [field.name for field in fields(made) if field.name in static]

        def flatten(tree: T) -> tuple[Any, Any]:
            aux = tuple(getattr(tree, name) for name in constants)
            return tuple(getattr(tree, name) for name in names), aux

        def flatten_with_keys(tree: T) -> tuple[Any, Any]:
            children, aux = flatten(tree)
            keys = map(jax.tree_util.GetAttrKey, names)
            return tuple(zip(keys, children, strict=True)), aux

        def unflatten(aux: Any, children: Any) -> T:
            given = dict(zip(names, children, strict=True)) | dict(zip(constants, aux, strict=True))
            return made(**given)

        jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
        return made

    return register
