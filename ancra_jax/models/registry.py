"""Networks by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ancra_jax.errors import UsageError
from ancra_jax.registry import Registry

Factory = Callable[..., nn.Module]
"""``(*, num_classes, width, reverse_attention, dtype, ...) -> network``; see `create`.

``width`` is None for the network's own default; numbers in the name are integer arguments,
``depth`` and ``factor`` for ``'wide_resnet{depth}_{factor}'``. The network is a Linen module whose
``__call__(images, labels=None, *, train=False)`` gives ``ancra_jax.types.Outputs``.
"""

_models: Registry[Factory] = Registry("model")
register = _models.register
available = _models.names


def create(
    name: str,
    *,
    num_classes: int,
    width: int | None = None,
    reverse_attention: bool = False,
    dtype: Any = jnp.float32,
) -> nn.Module:
    """Create a network.

    Args:
      name: ``'resnet18'``, ``'preact_resnet18'``, ``'wide_resnet28_10'`` (any depth 6n + 4 and any
        factor), or a name given to `register`.
      num_classes: number of logits, at least 2.
      width: channels of the stem; None is the paper's, 64 for ResNets and 16 for WideResNets (whose
        factor multiplies it further).
      reverse_attention: with attention and auxiliary heads (paper eq. 6) or plain.
      dtype: of the computation, float32 or bfloat16; parameters are float32.

    Returns:
      A Linen module: ``network.init(key, images)`` makes its variables,
      ``network.apply(variables, images, labels, train=...)`` gives ``ancra_jax.types.Outputs``.

    Raises:
      UsageError: any of the arguments is not allowed.
    """
    factory, numbers = _models.find(name)
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
