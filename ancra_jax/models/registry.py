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
    if type(num_classes) is not int or num_classes < 2:
        raise UsageError(f"{num_classes=}: must be an integer of 2 or more")
    if width is not None and (type(width) is not int or width < 1):
        raise UsageError(f"{width=}: must be an integer of 1 or more, or None")
    if not isinstance(reverse_attention, bool):
        raise UsageError(f"{reverse_attention=}: must be True or False")
    if dtype not in ("float32", "bfloat16", jnp.float32, jnp.bfloat16):
        raise UsageError(f"{dtype=}: must be float32 or bfloat16")
    return factory(
        num_classes=num_classes,
        width=width,
        reverse_attention=reverse_attention,
        dtype=jnp.dtype(dtype),
        **numbers,
    )
