"""PreActResNet-18 for small images: a 3x3 stem and no max-pooling."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from ancra_jax.models.layers import (
    BatchNorm,
    Conv,
    FeatureMap,
    Initializer,
    NewFeatureMap,
    torch_kernel_init,
)
from ancra_jax.models.network import Network, Trunk, residual_blocks
from ancra_jax.models.registry import register


class PreActBlock(nn.Module):
    """Batch normalisation and ReLU before each of two 3x3 convolutions (He et al., 2016b).

    A block that changes the shape has a convolution in its shortcut, of the activated input.

    Attributes:
      features: output channels.
      stride: of the first convolution.
      dtype: of the computation.
      kernel_init: of all convolutions.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: Initializer = torch_kernel_init

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> NewFeatureMap:
        """Apply the block."""
        conv = partial(Conv, self.features, dtype=self.dtype, kernel_init=self.kernel_init)
        activated = nn.relu(BatchNorm(name="bn1")(x, train=train))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(kernel_size=1, stride=self.stride, name="shortcut_conv")(activated)
        y = conv(stride=self.stride, name="conv1")(activated)
        y = nn.relu(BatchNorm(name="bn2")(y, train=train))
        return x + conv(name="conv2")(y)


class PreActResNet18(Network):
    """PreActResNet-18, stages of 1, 2, 4 and 8 times ``width`` channels (paper: ``width=64``)."""

    width: int = 64

    total_stride: ClassVar[int] = 8
    pool_window: ClassVar[int] = 4

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make the residual blocks and the final activation."""
        x = Conv(self.width, dtype=self.dtype, name="conv1")(images)
        block = partial(PreActBlock, dtype=self.dtype)
        stages = [self.width * 2**i for i in range(4)]
        blocks = residual_blocks(block, stages, 2, prefix="layer", train=train)
        norm = BatchNorm(name="bn")
        return Trunk(x, blocks, lambda x: nn.relu(norm(x, train=train)))


@register("preact_resnet18")
def preact_resnet18(*, width: int | None, **options: Any) -> PreActResNet18:
    """Create a PreActResNet-18, of the paper's width if there is none."""
    return PreActResNet18(width=width or PreActResNet18.width, **options)
