"""PreActResNet-18 for small images: a 3x3 stem and no max-pooling."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from ancra_jax.models.layers import BatchNorm, Conv, FeatureMap, NewFeatureMap, torch_kernel_init
from ancra_jax.models.network import Network, Trunk, residual_blocks


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
    kernel_init: Callable[..., Array] = torch_kernel_init

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> NewFeatureMap:
        """Applies the block."""
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
        """Computes the stem and all residual blocks but the two of the last stage."""
        x = Conv(self.width, dtype=self.dtype, name="conv1")(images)
        *early, last_but_one, last = residual_blocks(
            partial(PreActBlock, dtype=self.dtype),
            [self.width * 2**i for i in range(4)],
            blocks_per_stage=2,
            prefix="layer",
            train=train,
        )
        for block in early:
            x = block(x)
        final_norm = BatchNorm(name="bn")
        return Trunk(x, (last_but_one, last), lambda x: nn.relu(final_norm(x, train=train)))
