"""What all networks share: their call, their classifier, and attention on their last blocks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ancra_jax.errors import UsageError
from ancra_jax.models.layers import Classifier, FeatureMap, NewFeatureMap, average_pool
from ancra_jax.models.reverse_attention import (
    AttentionRule,
    flatten_channel_major,
    hard_attention,
    reverse_attention,
)
from ancra_jax.types import Outputs


class Trunk(NamedTuple):
    """What a network consists of before its classifier.

    Attributes:
      feature_map: output of the stem.
      blocks: the residual blocks, at least two; reverse attention weights the last two.
      final_activation: between the last residual sum and pooling. Pre-activation networks have
        their final batch normalisation and ReLU here; under reverse attention it comes after each
        of the last two blocks.
    """

    feature_map: FeatureMap
    blocks: Sequence[Callable[[FeatureMap], NewFeatureMap]]
    final_activation: Callable[[FeatureMap], FeatureMap] = lambda x: x


def residual_blocks(
    block: Callable[..., nn.Module],
    stage_features: Sequence[int],
    blocks_per_stage: int,
    *,
    prefix: str,
    train: bool,
) -> list[Callable[[FeatureMap], NewFeatureMap]]:
    """Make the blocks of all stages; every stage but the first starts by halving the map.

    Args:
      block: called as ``block(features, stride=..., name=...)``.
      stage_features: output channels of each stage.
      blocks_per_stage: the same in all stages.
      prefix: block ``i`` of stage ``s`` is named ``<prefix><s>_<i>``, with ``s`` from 1.
      train: passed to every block.
    """
    return [
        partial(
            block(features, stride=2 if stage > 1 and i == 0 else 1, name=f"{prefix}{stage}_{i}"),
            train=train,
        )
        for stage, features in enumerate(stage_features, start=1)
        for i in range(blocks_per_stage)
    ]


class Network(nn.Module):
    """An image classifier, plain or with reverse attention on its last two residual blocks.

    A subclass implements `trunk`.

    Attributes:
      num_classes: number of logits.
      width: channels of the stem, from which all others follow.
      reverse_attention: whether the network has attention and auxiliary heads.
      dtype: of convolutions and feature maps; parameters, batch statistics, pooling and logits are
        float32 in any case.
    """

    num_classes: int
    width: int
    reverse_attention: bool = False
    dtype: Any = jnp.float32

    total_stride: ClassVar[int]
    pool_window: ClassVar[int]
    zero_classifier_bias: ClassVar[bool] = False

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make all that follows it before the classifier."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        labels: Int[Array, "batch"] | None = None,
        *,
        train: bool = False,
        attention: AttentionRule = hard_attention,
    ) -> Outputs:
        """Compute logits, auxiliary logits and features.

        The pooled unweighted features of the blocks with attention are sown as
        ``intermediates['pooled']``.

        Args:
          images: pixels on the [0, 1] scale.
          labels: they choose the masks in the training phase (``train=True`` with reverse
            attention), and are not looked at otherwise.
          train: normalise with the batch's statistics and update the running ones (apply with
            ``mutable=['batch_stats']``).
          attention: choice of the masks; the paper's by default.

        Returns:
          ``Outputs``, float32; ``aux_logits`` has one entry per block with attention, none without.

        Raises:
          UsageError: images that are not floating-point NHWC or smaller than the network's total
            stride; labels that are missing or not one per image.
        """
        check_images(images, type(self))
        if train and self.reverse_attention:
            check_labels(labels, images)
        else:
            labels = None
        trunk = self.trunk(images.astype(self.dtype), train=train)
        classifier = Classifier(
            self.num_classes, self.pool_window, zero_bias=self.zero_classifier_bias, name="fc"
        )
        x, aux_logits = trunk.feature_map, []
        for block in trunk.blocks[:-2]:
            x = block(x)
        for k, block in enumerate(trunk.blocks[-2:]):
            x = block(x)
            if self.reverse_attention:
                x = trunk.final_activation(x)
                attended = reverse_attention(
                    x, classifier(x), labels, window=self.pool_window, block=k, attention=attention
                )
                x = attended.feature_map
                self.sow("intermediates", "pooled", attended.pooled)
                aux_logits.append(attended.aux_logits)
        if not self.reverse_attention:
            x = trunk.final_activation(x)
        features = flatten_channel_major(average_pool(x, self.pool_window))
        logits = classifier(x)(features)
        no_heads = jnp.zeros((0, *logits.shape), logits.dtype)
        return Outputs(logits, jnp.stack(aux_logits) if aux_logits else no_heads, features)


def check_images(images: Array, network: type[Network]) -> None:
    """Raise ``UsageError`` for images that a network cannot take."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UsageError(
            f"images of dtype {images.dtype}: floating-point pixels on the [0, 1] scale are needed "
            "(uint8 images: divide by 255)"
        )
    if images.ndim != 4:
        raise UsageError(
            f"images of shape {images.shape}: (batch, height, width, channels) is needed"
        )
    stride = network.total_stride
    if min(images.shape[1:3]) < stride:
        raise UsageError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels: {network.__name__} halves them "
            f"down by {stride}, so each side needs at least {stride}"
        )


def check_labels(labels: Array | None, images: Array) -> None:
    """Raise ``UsageError`` for labels that cannot choose the masks of the images."""
    if labels is None:
        raise UsageError(
            "labels=None: a network with reverse attention needs the labels in training "
            "(train=True), where they choose the masks"
        )
    if labels.shape != images.shape[:1]:
        raise UsageError(
            f"labels of shape {labels.shape}: one label per image is needed, {images.shape[:1]}"
        )
