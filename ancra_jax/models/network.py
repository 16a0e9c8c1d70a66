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
    """A network up to its last residual blocks.

    Attributes:
      feature_map: input of the first of ``last_blocks``.
      last_blocks: the two residual blocks that reverse attention weights.
      final_activation: between a residual sum and pooling. Pre-activation networks have their final
        batch normalisation and ReLU here, shared by both blocks under reverse attention.
    """

    feature_map: FeatureMap
    last_blocks: tuple[Callable[[FeatureMap], NewFeatureMap], ...]
    final_activation: Callable[[FeatureMap], FeatureMap]


def residual_blocks(
    block: Callable[..., nn.Module],
    stage_features: Sequence[int],
    *,
    blocks_per_stage: int,
    prefix: str,
    train: bool,
) -> list[Callable[[FeatureMap], NewFeatureMap]]:
    """Makes the blocks of all stages; every stage but the first starts by halving the map.

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
        """Computes everything before the last two residual blocks."""
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
        """Computes logits, auxiliary logits and features.

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
        self._check_images(images)
        use_labels = train and self.reverse_attention
        if use_labels:
            self._check_labels(images, labels)

        x, last_blocks, final_activation = self.trunk(images.astype(self.dtype), train=train)
        classifier = Classifier(
            self.num_classes, self.pool_window, zero_bias=self.zero_classifier_bias, name="fc"
        )
        aux_logits = []
        if self.reverse_attention:
            for k, block in enumerate(last_blocks):
                x = final_activation(block(x))
                x, aux, pooled = reverse_attention(
                    x,
                    classifier(x),
                    labels if use_labels else None,
                    window=self.pool_window,
                    block=k,
                    attention=attention,
                )
                self.sow("intermediates", "pooled", pooled)
                aux_logits.append(aux)
        else:
            for block in last_blocks:
                x = block(x)
            x = final_activation(x)

        features = flatten_channel_major(average_pool(x, self.pool_window))
        logits = classifier(x)(features)
        no_heads = jnp.zeros((0, *logits.shape), logits.dtype)
        return Outputs(logits, jnp.stack(aux_logits) if aux_logits else no_heads, features)

    def _check_images(self, images: Array) -> None:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UsageError(
                f"images of dtype {images.dtype}: floating-point pixels on the [0, 1] scale are "
                "needed (uint8 images: divide by 255)"
            )
        if images.ndim != 4:
            raise UsageError(
                f"images of shape {images.shape}: (batch, height, width, channels) is needed"
            )
        if min(images.shape[1:3]) < self.total_stride:
            raise UsageError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels: {type(self).__name__} "
                f"halves them down by {self.total_stride}, so each side needs at least "
                f"{self.total_stride}"
            )

    def _check_labels(self, images: Array, labels: Array | None) -> None:
        if labels is None:
            raise UsageError(
                "labels=None: a network with reverse attention needs the labels in training "
                "(train=True), where they choose the masks"
            )
        if labels.shape != images.shape[:1]:
            raise UsageError(
                f"labels of shape {labels.shape}: one label per image is needed, {images.shape[:1]}"
            )
