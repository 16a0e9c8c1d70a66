"""The one loop that every iterative attack runs in."""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

State = TypeVar("State")
LoopKind = Literal["auto", "host", "compiled"]


def iterate(
    step: Callable[..., State],
    state: State,
    *operands,
    num_steps: int,
    loop: LoopKind = "auto",
) -> State:
    """Computes ``state = step(i, state, *operands)`` for ``i = 0 .. num_steps - 1``.

    On the CPU backend XLA runs the gradient of a convolution inside a compiled loop 10 to 18 times
    slower than outside of one (jax issue 12868), and not every convolution of somebody else's model
    can be replaced (see ``with_fast_convolutions``). So there the steps are dispatched from Python,
    asynchronously (over several devices one at a time); elsewhere, and inside a ``jit``, the loop
    is compiled whole.

    Args:
      step: pure function of ``(i: Int[Array, ""], state, *operands)``. It is a static argument of
        ``jit``: pass a module-level function (or a ``jax.tree_util.Partial`` of one as an operand),
        not a fresh lambda, or every call compiles again.
      state: pytree of arrays.
      *operands: pytrees of arrays that do not change in the loop (model, labels, keys ...).
      num_steps: how many steps to take; not traced.
      loop: ``'host'`` dispatches the steps from Python, ``'compiled'`` uses ``fori_loop``,
        ``'auto'`` chooses: compiled under a transformation or on an accelerator, host on CPU.

    Returns:
      The final state.
    """
    if loop not in ("auto", "host", "compiled"):
        raise ValueError(f"loop={loop!r}: allowed are 'auto', 'host', 'compiled'")
    if num_steps <= 0:
        return state
    if loop == "auto":
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state, operands)))
        loop = "compiled" if traced or jax.default_backend() != "cpu" else "host"
    if loop == "compiled":
        return _compiled(step, num_steps, state, operands)
    sharded = any(
        isinstance(x, jax.Array) and len(x.devices()) > 1
        for x in jax.tree.leaves((state, operands))
    )
    for i in range(num_steps):
        state = _one_step(step, jnp.asarray(i, jnp.int32), state, operands)
        if sharded:
            # Several CPU devices share one pool of threads. With more than one step under way,
            # a collective of one can wait for a thread that the next one holds.
            jax.block_until_ready(state)
    return state


@partial(jax.jit, static_argnums=0)
def _one_step(step, i, state, operands):
    return step(i, state, *operands)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(step, num_steps, state, operands):
    return jax.lax.fori_loop(0, num_steps, lambda i, s: step(i, s, *operands), state)
