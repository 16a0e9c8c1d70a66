"""TF32 on a CPU: products whose precision is not the highest round their operands to 10 bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import mlir
from jax.lax import Precision, conv_general_dilated_p, dot_general_p

_HIGHEST = (Precision.HIGHEST, Precision.HIGHEST)


@contextmanager
def emulated() -> Iterator[None]:
    """Compile the programs of the block for such a device, and forget those of before."""
    rules = mlir._platform_specific_lowerings["cpu"]
    usual = {primitive: rules[primitive] for primitive in (conv_general_dilated_p, dot_general_p)}

    def lower(primitive: Any, context: Any, *operands: Any, **params: Any) -> Any:
        if params["precision"] == _HIGHEST:
            return usual[primitive].rule(context, *operands, **params)

        def of_rounded(*arrays: jax.Array, **params: Any) -> jax.Array:
            rounded = [
                jax.lax.reduce_precision(x, 8, 10) if x.dtype == jnp.float32 else x for x in arrays
            ]
            return primitive.bind(*rounded, **params | {"precision": _HIGHEST})

        return mlir.lower_fun(of_rounded, multiple_results=False)(context, *operands, **params)

    try:
        for primitive in usual:
            mlir.register_lowering(primitive, partial(lower, primitive), platform="cpu")
        jax.clear_caches()
        yield
    finally:
        rules.update(usual)
        jax.clear_caches()
