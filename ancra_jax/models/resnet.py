"""ResNet-18, PreActResNet-18 and WideResNets for small images: a 3x3 stem and no max-pooling."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn

from ancra_jax.errors import UsageError
from ancra_jax.models.layers import BatchNorm, Conv, FeatureMap, NewFeatureMap
from ancra_jax.models.network import Network, Trunk, register, residual_blocks


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the sum (He et al., 2016a)."""

    features: int
    stride: int = 1  # of the first convolution
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> NewFeatureMap:
        """Apply the block."""
        conv = partial(self.conv, self.features)
        y = conv(stride=self.stride, name="conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = conv(name="conv2")(y)
        y = BatchNorm(name="bn2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(kernel_size=1, stride=self.stride, name="shortcut_conv")(x)
            x = BatchNorm(name="shortcut_bn")(x, train=train)
        return nn.relu(y + x)


class PreActBlock(nn.Module):
    """Batch normalisation and ReLU before each of two 3x3 convolutions (He et al., 2016b).

    A block that changes the shape has a convolution in its shortcut, of the activated input.
    """

    features: int
    stride: int = 1  # of the first convolution
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> NewFeatureMap:
        """Apply the block."""
        conv = partial(self.conv, self.features)
        activated = nn.relu(BatchNorm(name="bn1")(x, train=train))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(kernel_size=1, stride=self.stride, name="shortcut_conv")(activated)
        y = conv(stride=self.stride, name="conv1")(activated)
        y = nn.relu(BatchNorm(name="bn2")(y, train=train))
        return x + conv(name="conv2")(y)


class ResNet18(Network):
    """ResNet-18 with stages of 1, 2, 4 and 8 times ``width`` channels (paper: ``width=64``)."""

    width: int = 64

    total_stride: ClassVar[int] = 8
    pool_window: ClassVar[int] = 4

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make the residual blocks."""
        conv = partial(Conv, dtype=self.dtype)
        x = nn.relu(BatchNorm(name="bn1")(conv(self.width, name="conv1")(images), train=train))
        block = partial(BasicBlock, conv=conv)
        return Trunk(x, residual_blocks(block, self.width, [2] * 4, prefix="layer", train=train))


class PreActResNet18(ResNet18):
    """PreActResNet-18, stages of 1, 2, 4 and 8 times ``width`` channels (paper: ``width=64``)."""

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make the residual blocks and the final activation."""
        conv = partial(Conv, dtype=self.dtype)
        x = conv(self.width, name="conv1")(images)
        block = partial(PreActBlock, conv=conv)
        blocks = residual_blocks(block, self.width, [2] * 4, prefix="layer", train=train)
        norm = BatchNorm(name="bn")
        return Trunk(x, blocks, lambda x: nn.relu(norm(x, train=train)))


class WideResNet(Network):
    """WideResNet-d-k without dropout (Zagoruyko and Komodakis, 2016), of any depth ``6n + 4``.

    Its three groups of ``n`` blocks have 1, 2 and 4 times ``width * factor`` channels; the stem has
    ``width`` (paper: ``width=16``, so that WideResNet-28-10 ends in 640 channels).
    With reverse attention the last group needs two blocks, so the depth is at least 16. Kernels of
    size ``k x k`` with ``out`` output channels start from N(0, sqrt(2 / (k * k * out))).
    """

    width: int = 16
    depth: int = 28  # number of convolutions: 10, 16, 22, 28, 34 ...
    factor: int = 10  # by which the groups are wider than the stem

    total_stride: ClassVar[int] = 4
    pool_window: ClassVar[int] = 8
    zero_classifier_bias: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise UsageError(f"WideResNet of depth {self.depth}: must be 6n + 4, so 10, 16, 22 ...")
        if self.factor < 1:
            raise UsageError(f"WideResNet of widening factor {self.factor}: must be at least 1")
        if self.reverse_attention and self.depth < 16:
            raise UsageError(
                f"WideResNet of depth {self.depth} with reverse attention: must be at least of "
                "depth 16, which has two blocks in its last group"
            )
        super().__post_init__()

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make the residual blocks and the final activation."""
        kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(Conv, dtype=self.dtype, kernel_init=kernel_init)
        x = conv(self.width, name="conv1")(images)
        block = partial(PreActBlock, conv=conv)
        sizes = [(self.depth - 4) // 6] * 3
        width = self.width * self.factor
        blocks = residual_blocks(block, width, sizes, prefix="block", train=train)
        norm = BatchNorm(name="bn")
        return Trunk(x, blocks, lambda x: nn.relu(norm(x, train=train)))


register("resnet18")(ResNet18.of_width)
register("preact_resnet18")(PreActResNet18.of_width)
_EXAMPLES = ("wide_resnet28_10", "wide_resnet34_10")
register("wide_resnet{depth}_{factor}", examples=_EXAMPLES)(WideResNet.of_width)
