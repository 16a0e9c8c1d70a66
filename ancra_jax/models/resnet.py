"""ResNet-18 for small images: a 3x3 stem and no max-pooling."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from ancra_jax.models.layers import BatchNorm, Conv, FeatureMap, NewFeatureMap
from ancra_jax.models.network import Network, Trunk, residual_blocks


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
        """Applies the block."""
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
        """Computes the stem and all residual blocks but the two of the last stage."""
        x = Conv(self.width, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train))
        *early, last_but_one, last = residual_blocks(
            partial(BasicBlock, dtype=self.dtype),
            [self.width * 2**i for i in range(4)],
            blocks_per_stage=2,
            prefix="layer",
            train=train,
        )
        for block in early:
            x = block(x)
        return Trunk(x, (last_but_one, last), lambda x: x)
