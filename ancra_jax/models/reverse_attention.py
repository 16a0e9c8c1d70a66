"""Reverse attention (RA): the final linear layer's weights as a mask on the last feature maps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
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


@dataclass(frozen=True)
class SoftAttention:
    """Mixes the rows by how likely their classes are, ``softmax(p / temperature) Omega``.

    The same in training and in testing: labels are not looked at. A small temperature makes it
    `hard_attention`'s argmax again, which hides the gradient.
    """

    temperature: float

    def __call__(
        self,
        aux_logits: Logits,
        class_rows: Float[Array, "classes features"],
        labels: Labels | None,
        block: int,
    ) -> Features:
        """Return the masks; the arguments are those of `hard_attention`."""
        return jax.nn.softmax(aux_logits / self.temperature) @ class_rows


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
    stopped: bool = False,
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
      stopped: whether what follows the mask is without effect on what made ``o``: its gradient
        reaches the mask alone.
    """
    cells = average_pool(feature_map, window)
    pooled = flatten_channel_major(cells)
    aux_logits = linear(pooled)
    mask = attention(aux_logits, linear.kernel.T, labels, block)
    mask = _over_the_map(mask, cells, feature_map)
    handed_on = jax.lax.stop_gradient(feature_map) if stopped else feature_map
    return Attended(handed_on * mask, aux_logits, pooled)


def class_branches(
    feature_map: FeatureMap, block: Callable[[FeatureMap], FeatureMap], linear: Linear, window: int
) -> tuple[Logits, Features]:
    """Score every class by the last block under the class's own mask; return also the features.

    With ``o`` the map before the block::

        s_k = <Omega_k, pool(block(o * Omega_k))> + b_k

    No label and no prediction chooses a mask, so there is nothing that a gradient does not pass.
    The block sees all branches as one batch: in training it normalises them together.

    Args:
      feature_map: ``o``, after its ReLU.
      block: the last residual block, its final activation included; it keeps the map's shape.
      linear: the network's one final linear layer.
      window: of the average pooling before the linear layer.

    Returns:
      The logits ``s``, and the mean over the branches of what is pooled.
    """
    rows = linear.kernel.T
    masks = _over_the_map(rows, average_pool(feature_map, window), feature_map)
    # Neighbours belong to one example, so that a sharded batch stays where it is.
    branches = (feature_map[:, None] * masks).reshape(-1, *feature_map.shape[1:])
    pooled = flatten_channel_major(average_pool(block(branches), window))
    pooled = pooled.reshape(feature_map.shape[0], *rows.shape)  # len() is of known sizes only
    return jnp.sum(pooled * rows, axis=-1) + linear.bias, jnp.mean(pooled, axis=1)


def _over_the_map(
    masks: Float[Array, "masks features"],
    cells: Float[Array, "batch rows columns channels"],
    feature_map: FeatureMap,
) -> Float[Array, "masks _ _ channels"]:
    """Give each position of a map the weights of its nearest cell."""
    _, rows, columns, channels = cells.shape
    mask = masks.reshape(-1, channels, rows, columns).transpose(0, 2, 3, 1)
    if (rows, columns) != (1, 1):
        height, width = feature_map.shape[1:3]
        mask = mask[:, jnp.arange(height) * rows // height]
        mask = mask[:, :, jnp.arange(width) * columns // width]
    return mask.astype(feature_map.dtype)


def flatten_channel_major(cells: FeatureMap) -> Features:
    """Flatten as PyTorch flattens NCHW, so that its linear layers' weights fit."""
    return cells.transpose(0, 3, 1, 2).reshape(cells.shape[0], math.prod(cells.shape[1:]))
