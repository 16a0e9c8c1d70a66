"""Floating-point operations of a JAX function, counted from its convolutions and matrix products.

A multiplication and an addition are two operations; all else (normalisation, activations) is left
out, as is usual for a share of a device's peak. Products with the zeros of a padding count, those
with the zeros between the rows of a dilated operand do not: a convolution's two gradients then cost
what the convolution itself does, whichever way they are written.
"""

import math
from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var


def count(function: Callable, *args) -> int:
    """Operations of one call, loops and branches included.

    Args:
      function: traced, not run.
      *args: arrays or ``jax.ShapeDtypeStruct``.

    Raises:
      ValueError: a loop whose length is known at run time only.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    total = 0
    needed = {atom for atom in jaxpr.outvars if isinstance(atom, Var)}
    for equation in reversed(jaxpr.eqns):
        if needed.isdisjoint(equation.outvars):
            continue  # dead, as the kernels' gradients are within an attack: never computed
        needed.update(atom for atom in equation.invars if isinstance(atom, Var))
        total += _of_equation(equation)
    return total


def _of_equation(equation: JaxprEqn) -> int:
    match equation.primitive.name:
        case "conv_general_dilated":
            return _of_convolution(equation)
        case "dot_general":
            return _of_product(equation)
        case "scan":
            return equation.params["length"] * _of_jaxpr(equation.params["jaxpr"].jaxpr)
        case "cond":
            return max(_of_jaxpr(branch.jaxpr) for branch in equation.params["branches"])
        case "while":
            if any(map(_of_jaxpr, _inner_jaxprs(equation))):
                raise ValueError("a loop of unknown length: its operations cannot be counted")
            return 0
    # custom_vjp_call keeps the forward function beside rules that are not jaxprs; jit has one.
    return sum(map(_of_jaxpr, _inner_jaxprs(equation)))


def _inner_jaxprs(equation):
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _of_convolution(equation):
    """The smaller map has one position per application of the kernel, in both gradients too."""
    images, kernel = (atom.aval.shape for atom in equation.invars)
    (outputs,) = (atom.aval.shape for atom in equation.outvars)
    layout = equation.params["dimension_numbers"]
    batch, _, *space = layout.lhs_spec
    features, channels, *window = layout.rhs_spec
    applications = min(
        math.prod(images[axis] for axis in space),
        math.prod(outputs[axis] for axis in layout.out_spec[2:]),
    )
    taps = math.prod(kernel[axis] for axis in window)
    groups = equation.params["batch_group_count"]
    return 2 * images[batch] // groups * kernel[features] * kernel[channels] * taps * applications


def _of_product(equation):
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    (outputs,) = (atom.aval.shape for atom in equation.outvars)
    return 2 * math.prod(outputs) * math.prod(left[axis] for axis in contracted)
