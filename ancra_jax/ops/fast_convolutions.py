"""Somebody else's model, with its convolutions in the form that is fastest on CPU."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.typing import ArrayLike

from ancra_jax.ops.convolution import Geometry, cpu_convolution
from ancra_jax.ops.target import platform

Result = TypeVar("Result")


def with_fast_convolutions(function: Callable[..., Result]) -> Callable[..., Result]:
    """Replace the convolutions in a function by ``cpu_convolution``, on the CPU backend.

    The function is traced, and its operations are carried out as they stand but for
    two-dimensional convolutions without groups, also inside of ``jit`` and ``jax.checkpoint``.
    Convolutions in control flow, or in functions with a derivative rule of their own, stay as they
    are. So does a function without convolutions, or with side effects, or that cannot be traced by
    itself. Values are equal up to rounding, and arrays that the function closes over stay traced.
    With replaced convolutions only reverse-mode differentiation is possible. Elsewhere than on CPU
    the function itself is returned.
    """
    if platform() != "cpu":
        return function

    def replaced(*args: Any) -> Result:
        try:
            traced, result = jax.make_jaxpr(function, return_shape=True)(*args)
        except Exception:
            # A result that is not all arrays, or a stateful module that refuses to change in a
            # trace of its own. An error of the function's own is raised again here.
            return function(*args)
        if traced.effects:
            return function(*args)
        leaves = jax.tree.leaves(args)
        if _has_convolution(traced.jaxpr):
            outputs = _evaluate(traced.jaxpr, traced.consts, leaves)
        else:  # as it stands, but without tracing the function again
            outputs = jaxpr_as_fun(traced)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(result), outputs)

    return replaced


def _has_convolution(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    return any(
        _is_replaceable(equation)
        or (equation.primitive.name in _CALLS and _has_convolution(equation.params["jaxpr"]))
        for equation in jaxpr.eqns
    )


def _evaluate(
    jaxpr: Jaxpr, constants: Sequence[ArrayLike], arguments: Sequence[ArrayLike]
) -> list[ArrayLike]:
    values: dict[Var, ArrayLike] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True)
    )

    def read(atom: Any) -> ArrayLike:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if _is_replaceable(equation):
            images, kernel = operands
            results = [_convolution(images, kernel, equation.params)]
        else:
            carry_out = _CALLS.get(equation.primitive.name, _as_it_is)
            results = carry_out(jaxpr, equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _as_it_is(jaxpr: Jaxpr, equation: JaxprEqn, operands: Sequence[ArrayLike]) -> list[ArrayLike]:
    pairs = zip(equation.invars, operands, strict=True)
    known = {atom: value for atom, value in pairs if isinstance(atom, Var)}
    alone = jaxpr.replace(
        constvars=[], invars=list(known), outvars=equation.outvars, eqns=[equation]
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, []))(*known.values())


def _jit(jaxpr: Jaxpr, equation: JaxprEqn, operands: Sequence[ArrayLike]) -> list[ArrayLike]:
    params = equation.params
    shardings = [*params["in_shardings"], *params["out_shardings"]]
    if any(isinstance(one, jax.sharding.Sharding) for one in shardings):
        return _as_it_is(jaxpr, equation, operands)
    return _evaluate(params["jaxpr"].jaxpr, params["jaxpr"].consts, operands)


def _checkpoint(_: Jaxpr, equation: JaxprEqn, operands: Sequence[ArrayLike]) -> list[ArrayLike]:
    options = {name: equation.params[name] for name in ("prevent_cse", "policy")}

    def inner(*values: ArrayLike) -> list[ArrayLike]:
        return _evaluate(equation.params["jaxpr"], [], values)

    return jax.checkpoint(inner, **options)(*operands)


_CALLS = {"jit": _jit, "pjit": _jit, "checkpoint": _checkpoint, "remat2": _checkpoint}


def _is_replaceable(equation: JaxprEqn) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return False
    operands: list[Any] = [atom.aval for atom in equation.invars]
    images, kernel = operands
    params = equation.params
    return (
        images.ndim == 4
        and images.dtype == kernel.dtype
        and jnp.issubdtype(images.dtype, jnp.floating)
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) == {1}
        and all(edge >= 0 for edges in params["padding"] for edge in edges)
        and params["preferred_element_type"] in (None, images.dtype)
        and params["out_sharding"] is None
    )


def _convolution(images: Any, kernel: Any, params: dict[str, Any]) -> ArrayLike:
    """Turn the operands to NHWC and HWIO, and the result to the layout that was asked for."""
    layout = params["dimension_numbers"]
    batch, channel, *space = layout.lhs_spec
    features_out, features_in, *window = layout.rhs_spec
    result = cpu_convolution(
        images.transpose(batch, *space, channel),
        kernel.transpose(*window, features_in, features_out),
        Geometry(
            params["window_strides"], params["padding"], params["rhs_dilation"], params["precision"]
        ),
    )
    batch, channel, *space = layout.out_spec
    source = {batch: 0, space[0]: 1, space[1]: 2, channel: 3}
    return result.transpose([source[axis] for axis in range(4)])
