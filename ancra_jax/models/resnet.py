"""ResNet-18 for small images: a 3x3 stem and no max-pooling."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from ancra_jax.models.layers import BatchNorm, Conv, FeatureMap, NewFeatureMap
from ancra_jax.models.network import Network, Trunk, residual_blocks
from ancra_jax.models.registry import register


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the sum (He et al., 2016a).

    Attributes:
      features: output channels.
      stride: of the first convolution.
      dtype: of the computation.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> NewFeatureMap:
        """Apply the block."""
        conv = partial(Conv, self.features, dtype=self.dtype)
        y = conv(stride=self.stride, name="conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = conv(name="conv2")(y)
        y = BatchNorm(name="bn2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(kernel_size=1, stride=self.stride, name="shortcut_conv")(x)
            x = BatchNorm(name="shortcut_bn")(x, train=train)
        return nn.relu(y + x)


class ResNet18(Network):
    """ResNet-18 with stages of 1, 2, 4 and 8 times ``width`` channels (paper: ``width=64``)."""

    width: int = 64

    total_stride: ClassVar[int] = 8
    pool_window: ClassVar[int] = 4

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make the residual blocks."""
        x = Conv(self.width, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train))
        block = partial(BasicBlock, dtype=self.dtype)
        stages = [self.width * 2**i for i in range(4)]
        return Trunk(x, residual_blocks(block, stages, 2, prefix="layer", train=train))


@register("resnet18")
def resnet18(*, width: int | None, **options: Any) -> ResNet18:
    """Create a ResNet-18, of the paper's width if there is none."""
    return ResNet18(width=width or ResNet18.width, **options)
