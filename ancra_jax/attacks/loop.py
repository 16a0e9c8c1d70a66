"""The one loop that every iterative attack runs in, and plain projected ascent in it."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax.attacks.arguments import Number, check_one_of
from ancra_jax.attacks.objectives import Evaluator, Objective, value_and_input_gradient
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.ops.images import AnyImages, Images
from ancra_jax.ops.per_device import Layout, layout_of, on_own_rows, over_several_devices
from ancra_jax.ops.pytree import fold
from ancra_jax.ops.target import platform

State = TypeVar("State")
LoopKind = Literal["auto", "host", "compiled"]
MANY_PASSES = 500  # of a row; an attack of so many is worth more programs, for smaller batches


def ascend(
    objective: Objective,
    start: AnyImages,
    images: AnyImages,
    threat_model: ThreatModel,
    *,
    step_size: Number,
    num_steps: int,
    loop: LoopKind = "auto",
) -> Images:
    """Ascend an objective by projected steps and return the last iterate, whatever it is worth.

    Every step is ``x <- project(x + step_size * direction(gradient))``. This is the attack inside
    training: it works inside a jitted step as well as alone, no gradient flows through it, and its
    arguments are not checked, only made float32. ``attacks.pgd`` checks them and judges what it
    finds.

    Args:
      objective: what to ascend, see ``attacks.objectives``.
      start: the first iterates, taken as they are.
      images: natural images, the centres of the balls, pixels in [0, 1].
      threat_model: the ball in which all iterates but the first lie.
      step_size: length of a step in the threat model's norm, on the [0, 1] pixel scale.
      num_steps: number of steps; not traced.
      loop: see ``ancra_jax.attacks``.
    """
    x, natural = (jnp.asarray(array, jnp.float32) for array in (start, images))
    objective, x, natural = frozen((objective, x, natural))
    operands = (objective, natural, threat_model, step_size)
    return frozen(iterate(_step, x, *operands, num_steps=num_steps, loop=loop))


def _step(
    i: Any, x: Images, objective: Objective, natural: Images, ball: ThreatModel, size: Number
) -> Images:
    _, gradients = value_and_input_gradient(objective, x)
    return ball.project(x + size * ball.direction(gradients), natural)


def frozen(tree: State) -> State:
    """Stop gradients through every floating-point leaf: an adversarial image is data."""

    def freeze(leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer) and jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.lax.stop_gradient(leaf)
        return leaf

    return jax.tree.map(freeze, tree)


def iterate(
    step: "Callable[..., State] | tuple[Callable[..., Any] | Part, ...]",
    state: State,
    *operands: Any,
    num_steps: int,
    loop: LoopKind = "auto",
) -> State:
    """Return the state after ``state = step(i, state, *operands)`` for i = 0 .. num_steps - 1.

    On the CPU backend XLA runs the gradient of a convolution inside a compiled loop 10 to 18 times
    slower than outside of one (jax issue 12868), and not every convolution of somebody else's model
    can be replaced (see ``with_fast_convolutions``). So there the steps are dispatched from Python,
    asynchronously; elsewhere, and inside a ``jit``, the loop is compiled whole. If the batch is
    spread over devices, each works by itself on its own rows (see ``ops.per_device``).

    Args:
      step: pure function of ``(i: Int[Array, ""], state, *operands)``. It is a static argument of
        ``jit``: pass a module-level function (or a ``jax.tree_util.Partial`` of one as an operand),
        not a fresh lambda, or every call compiles again. It may be given in parts, each of which
        takes what the one before it returned for the state: dispatched one after the other they
        need less memory at a time.
      state: pytree of arrays over the batch.
      *operands: pytrees of arrays that do not change in the loop (model, labels, keys ...); models
        that are ``Foldable`` are folded once, before it.
      num_steps: how many steps to take; not traced.
      loop: see ``ancra_jax.attacks``; compiled, it is a ``fori_loop``.
    """
    check_loop(loop)
    if num_steps <= 0:
        return state
    operands = fold(operands)
    parts = step if isinstance(step, tuple) else (step,)
    traced = is_traced((state, operands))
    if loop == "auto":
        loop = "compiled" if traced or platform() != "cpu" else "host"
    layout = None if traced else layout_of(state, operands)
    if loop == "compiled":
        return _compiled(parts, num_steps, layout, state, operands)
    together = not traced and layout is None and over_several_devices((state, operands))
    layouts: dict[Any, Layout | None] = {}
    for i in range(num_steps):
        number = np.int32(i)  # making a JAX array would run a program of its own in every step
        for part in parts:
            if not isinstance(part, Part):
                state = _one_step(part, layout, number, state, operands)
                continue
            rows, *others = part.arguments(state, *operands)
            if part not in layouts:
                layouts[part] = layout and layout_of(rows, others)
            found = _one_step(part.function, layouts[part], number, rows, others)
            state = part.result(state, found)
        if together:
            # Several CPU devices share one pool of threads. With more than one step under way,
            # a collective of one can wait for a thread that the next one holds.
            jax.block_until_ready(state)
    return state


class Part(NamedTuple):
    """A part of a step that takes and gives no more than it needs.

    Dispatched, it copies nothing that it does not change, and is one program for all loops that
    have it.
    """

    function: Callable[..., Any]  # pure, of ``(i, rows, *others)``; ``rows`` are over the batch
    arguments: Callable[..., Any]  # from ``(state, *operands)`` to ``(rows, *others)``
    result: Callable[..., Any]  # from the state and what the function returned to the next state


def gradients_of(i: Any, images: Images, evaluate: Evaluator) -> Any:
    """Return the objective, its gradients and the logits; a function for ``Part``."""
    return evaluate(images, i)


def values_of(i: Any, images: Images, evaluate: Evaluator) -> Any:
    """Return the objective and the logits; a function for ``Part``."""
    return evaluate.without_gradients(images)


def evaluated(evaluate: Evaluator, images: Images) -> Any:
    """Return the objective and the logits, by the program that the loops have for it."""
    layout = None if is_traced((evaluate, images)) else layout_of(images, [evaluate])
    return _one_step(values_of, layout, np.int32(0), images, [evaluate])


def check_loop(loop: str) -> None:
    """Refuse what is not a kind of loop, with a ValueError that names those there are."""
    check_one_of(loop, "loop", get_args(LoopKind))


def is_traced(tree: Any) -> bool:
    """Return whether any leaf of a pytree is being traced by ``jit`` or another transformation."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


@partial(jax.jit, static_argnums=(0, 1))
def _one_step(step: Any, layout: Layout | None, i: Any, state: State, operands: Any) -> State:
    def take(i: Any, state: State, operands: Any) -> State:
        return step(i, state, *operands)

    return on_own_rows(take, layout)(i, state, operands)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(
    parts: Any, num_steps: int, layout: Layout | None, state: State, operands: Any
) -> State:
    def take_all(_: None, state: State, operands: Any) -> State:
        def step(i: Any, state: Any) -> Any:
            for part in parts:
                if isinstance(part, Part):
                    found = part.function(i, *part.arguments(state, *operands))
                    state = part.result(state, found)
                else:
                    state = part(i, state, *operands)
            return state

        return jax.lax.fori_loop(0, num_steps, step, state)

    return on_own_rows(take_all, layout)(None, state, operands)
