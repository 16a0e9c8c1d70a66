"""Networks by name."""

import difflib
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ancra_jax.errors import UsageError

Factory = Callable[..., nn.Module]

_factories: dict[str, Factory] = {}
_examples: dict[str, tuple[str, ...]] = {}


def register(name: str, *, examples: tuple[str, ...] = ()) -> Callable[[Factory], Factory]:
    """Makes a network of one's own known to `create`, as a decorator.

    The factory is called with the keyword arguments ``num_classes``, ``width`` (None: the
    network's own default), ``reverse_attention`` and ``dtype`` and returns a Linen module whose
    ``__call__(images, labels=None, *, train=False)`` gives ``ancra_jax.types.Outputs``.

    Args:
      name: what `create` takes. Numbers in braces are given to the factory as integer arguments:
        ``'wide_resnet{depth}_{factor}'``.
      examples: full names to show where the name has numbers.

    Raises:
      UsageError: the name is taken, or is not made of lower-case letters, digits and underscores.
    """
    if not re.fullmatch(r"(?:[a-z0-9_]|\{[a-z_]+\})+", name):
        raise UsageError(
            f"model name {name!r}: lower-case letters, digits, underscores and numbers in braces "
            "are allowed"
        )
    if name in _factories:
        raise UsageError(f"model name {name!r} is registered already")

    def add(factory: Factory) -> Factory:
        _factories[name] = factory
        _examples[name] = examples or (name,)
        return factory

    return add


def available() -> tuple[str, ...]:
    """Names that `create` knows, numbers in braces."""
    return tuple(_factories)


def create(
    name: str,
    *,
    num_classes: int,
    width: int | None = None,
    reverse_attention: bool = False,
    dtype: Any = jnp.float32,
) -> nn.Module:
    """Creates a network.

    Args:
      name: ``'resnet18'``, ``'preact_resnet18'``, ``'wide_resnet28_10'`` (any depth 6n + 4 and any
        factor), or a name given to `register`.
      num_classes: number of logits, at least 2.
      width: channels of the stem; None is the paper's, 64 for ResNets and 16 for WideResNets (whose
        factor multiplies it further).
      reverse_attention: with attention and auxiliary heads (paper eq. 6) or plain.
      dtype: of the computation, float32 or bfloat16; parameters are float32.

    Returns:
      A Linen module: ``model.init(key, images)`` makes its variables,
      ``model.apply(variables, images, labels, train=...)`` gives ``ancra_jax.types.Outputs``.

    Raises:
      UsageError: any of the arguments is not allowed.
    """
    factory, numbers = _find(name)
    if not _is_int(num_classes) or num_classes < 2:
        raise UsageError(f"num_classes={num_classes!r}: an integer of 2 or more is needed")
    if width is not None and (not _is_int(width) or width < 1):
        raise UsageError(f"width={width!r}: an integer of 1 or more, or None, is needed")
    if not isinstance(reverse_attention, bool):
        raise UsageError(f"reverse_attention={reverse_attention!r}: True or False is needed")
    return factory(
        num_classes=num_classes,
        width=width,
        reverse_attention=reverse_attention,
        dtype=_compute_dtype(dtype),
        **numbers,
    )


def _find(name: str) -> tuple[Factory, dict[str, int]]:
    """Returns the factory of a name, and the numbers within the name."""
    for pattern, factory in _factories.items():
        match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[0-9]+)", pattern), str(name))
        if match:
            return factory, {key: int(value) for key, value in match.groupdict().items()}
    examples = [example for names in _examples.values() for example in names]
    close = difflib.get_close_matches(str(name).lower(), examples, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"model {name!r}: allowed are {', '.join(available())}{suggestion}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _compute_dtype(dtype: Any) -> jnp.dtype:
    try:
        resolved = jnp.dtype(dtype)
    except TypeError:
        resolved = None
    if resolved not in (jnp.float32, jnp.bfloat16):
        raise UsageError(f"dtype={dtype!r}: float32 and bfloat16 are allowed")
    return resolved
