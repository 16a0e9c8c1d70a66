"""Reverse attention (RA): the final linear layer's weights as a mask on the last feature maps."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ancra_jax.models.layers import FeatureMap, Features, Linear, average_pool
from ancra_jax.ops.images import Labels
from ancra_jax.types import Logits

AttentionRule = Callable[..., Features]
"""Chooses the mask of each example, ``(aux_logits, class_rows, labels, block) -> rows``.

A mask is a row of ``class_rows`` or any mixture of them; the arguments are those of
`hard_attention`. The rule is an argument of the network's call and may be a pytree (a
``NamedTuple`` with a ``__call__``), so that classes to force or a temperature are traced and need
no compilation.
"""


def hard_attention(
    aux_logits: Logits,
    class_rows: Float[Array, "classes features"],
    labels: Labels | None,
    block: int,
) -> Features:
    """Take the label's row in training, the auxiliary prediction's row in testing (the paper's).

    Args:
      aux_logits: of this block.
      class_rows: Omega, the transposed kernel of the final linear layer.
      labels: of the examples in the training phase, None in the testing phase.
      block: 0 for the last but one residual block, 1 for the last.
    """
    classes = jnp.argmax(aux_logits, axis=-1) if labels is None else labels
    return class_rows[classes]


class Attended(NamedTuple):
    """What reverse attention makes of a feature map."""

    feature_map: FeatureMap  # weighted by the mask; takes the place of the block's output
    aux_logits: Logits  # of the unweighted map
    pooled: Features  # of the unweighted map, float32


def reverse_attention(
    feature_map: FeatureMap,
    linear: Linear,
    labels: Labels | None,
    *,
    window: int,
    block: int = 0,
    attention: AttentionRule = hard_attention,
) -> Attended:
    """Weight a residual block's output by a row of the final linear layer (paper eq. 6).

    With ``o`` the feature map and ``Omega`` the kernel, one row per class::

        p  = Omega pool(o) + b          auxiliary logits, of the unweighted map
        j  = y in the training phase, argmax p in the testing phase
        o' = o * Omega_j                channel-wise; Omega is not detached

    Where pooling leaves more than one cell per channel, a row holds one weight per channel and
    cell, and each position of the map takes the weight of its nearest cell.

    Args:
      feature_map: ``o``, after its ReLU.
      linear: the network's one final linear layer.
      labels: ``y`` in the training phase, None in the testing phase.
      window: of the average pooling before the linear layer.
      block: which of the blocks with attention this is, counted from 0; for the rule alone.
      attention: choice of the mask.
    """
    cells = average_pool(feature_map, window)
    pooled = flatten_channel_major(cells)
    aux_logits = linear(pooled)
    mask = attention(aux_logits, linear.kernel.T, labels, block)
    batch, rows, columns, channels = cells.shape
    mask = mask.reshape(batch, channels, rows, columns).transpose(0, 2, 3, 1)
    if (rows, columns) != (1, 1):
        height, width = feature_map.shape[1:3]
        mask = mask[:, jnp.arange(height) * rows // height]
        mask = mask[:, :, jnp.arange(width) * columns // width]
    return Attended(feature_map * mask.astype(feature_map.dtype), aux_logits, pooled)


def flatten_channel_major(cells: FeatureMap) -> Features:
    """Flatten as PyTorch flattens NCHW, so that its linear layers' weights fit."""
    return cells.transpose(0, 3, 1, 2).reshape(cells.shape[0], -1)
