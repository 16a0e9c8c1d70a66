"""Residual networks for small images: a 3x3 stem and no max-pooling.

The classes differ in a few facts, which are their class variables. ``folds`` of a block names the
batch normalisations that follow a convolution directly, each with that convolution.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn

from ancra_jax.errors import UsageError
from ancra_jax.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    FeatureMap,
    NewFeatureMap,
    after_norm,
    relu,
)
from ancra_jax.models.network import ACTIVATIONS, Network, Trunk, register, residual_blocks


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, the activation after the sum (He et al., 2016a)."""

    features: int
    stride: int = 1  # of the first convolution
    conv: Callable[..., nn.Module] = Conv
    activation: Activation = relu
    norm: Callable[..., nn.Module] = BatchNorm

    folds: ClassVar[Mapping[str, str]] = {
        "bn1": "conv1",
        "bn2": "conv2",
        "shortcut_bn": "shortcut_conv",
    }

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> NewFeatureMap:
        """Apply the block."""
        conv = partial(self.conv, self.features)
        y = conv(stride=self.stride, name="conv1")(x)
        y = after_norm(self.activation, train)(self.norm(name="bn1")(y, train=train))
        y = conv(name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(kernel_size=1, stride=self.stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x, train=train)
        return self.activation(y + x)


class BottleneckBlock(nn.Module):
    """Convolutions of sizes 1, 3 and 1, the last to four times ``features`` (He et al., 2016a)."""

    features: int
    stride: int = 1  # of the second convolution
    conv: Callable[..., nn.Module] = Conv
    activation: Activation = relu
    norm: Callable[..., nn.Module] = BatchNorm

    folds: ClassVar[Mapping[str, str]] = {**BasicBlock.folds, "bn3": "conv3"}

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> NewFeatureMap:
        """Apply the block."""
        out = 4 * self.features
        y = self.conv(self.features, kernel_size=1, name="conv1")(x)
        y = after_norm(self.activation, train)(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, stride=self.stride, name="conv2")(y)
        y = after_norm(self.activation, train)(self.norm(name="bn2")(y, train=train))
        y = self.conv(out, kernel_size=1, name="conv3")(y)
        y = self.norm(name="bn3")(y, train=train)
        if self.stride != 1 or x.shape[-1] != out:
            x = self.conv(out, kernel_size=1, stride=self.stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x, train=train)
        return self.activation(y + x)


class PreActBlock(nn.Module):
    """Batch normalisation and activation before each of two 3x3 convolutions (He et al., 2016b).

    A block that changes the shape has a convolution in its shortcut.
    """

    features: int
    stride: int = 1  # of the first convolution
    conv: Callable[..., nn.Module] = Conv
    activation: Activation = relu
    norm: Callable[..., nn.Module] = BatchNorm
    raw_shortcut: bool = False  # the shortcut's convolution is of the input before its activation
    shortcut_size: int = 1  # side of that convolution's kernel

    folds: ClassVar[Mapping[str, str]] = {"bn2": "conv1"}

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> NewFeatureMap:
        """Apply the block."""
        conv = partial(self.conv, self.features)
        activated = after_norm(self.activation, train)(self.norm(name="bn1")(x, train=train))
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = conv(
                kernel_size=self.shortcut_size, stride=self.stride, name="shortcut_conv"
            )
            x = shortcut(x if self.raw_shortcut else activated)
        y = conv(stride=self.stride, name="conv1")(activated)
        y = after_norm(self.activation, train)(self.norm(name="bn2")(y, train=train))
        return x + conv(name="conv2")(y)


class ResidualNetwork(Network):
    """A stem, stages of residual blocks, and after them a normalisation where blocks begin with it.

    Each stage but the first halves the map and doubles the channels.
    """

    block: ClassVar[type[nn.Module]] = BasicBlock
    block_options: ClassVar[Mapping[str, Any]] = {}
    stage: ClassVar[str] = "layer"  # what blocks' names begin with
    stem_norm: ClassVar[bool] = True  # a batch normalisation and an activation after the stem
    final_norm: ClassVar[bool] = False  # the same after the last block
    conv_options: ClassVar[Mapping[str, Any]] = {}

    def stages(self) -> tuple[int, Sequence[int]]:
        """Return the channels of the first stage, and the number of blocks of each."""
        raise NotImplementedError

    def folds(self, scope: Sequence[str]) -> Mapping[str, str] | None:
        """Return ``folds`` of the network itself (no scope) or of its blocks; None if unknown.

        What a subclass of somebody else computes in another way is not known.
        """
        if len(scope) > 1 or type(self).trunk is not ResidualNetwork.trunk:
            return None
        if scope:
            return vars(self.block).get("folds")
        return {"bn1": "conv1"} if self.stem_norm else {}

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make the residual blocks and the final activation."""
        conv: Callable[..., nn.Module] = partial(Conv, dtype=self.dtype, **self.conv_options)
        norm = partial(BatchNorm, momentum=self.batch_norm_momentum, parts=self.batch_norm_parts)
        activation = ACTIVATIONS[self.activation]
        x = conv(self.width, name="conv1")(images)
        if self.stem_norm:
            x = after_norm(activation, train)(norm(name="bn1")(x, train=train))
        shared = {"conv": conv, "activation": activation, "norm": norm}
        block = partial(self.block, **shared, **self.block_options)
        width, sizes = self.stages()
        blocks = residual_blocks(block, width, sizes, prefix=self.stage, train=train)
        if not self.final_norm:
            return Trunk(x, blocks)
        last = norm(name="bn")
        return Trunk(x, blocks, lambda x: after_norm(activation, train)(last(x, train=train)))


class ResNet18(ResidualNetwork):
    """ResNet-18 with stages of 1, 2, 4 and 8 times ``width`` channels (paper: ``width=64``)."""

    width: int = 64

    total_stride: ClassVar[int] = 8
    pool_window: ClassVar[int] = 4
    sizes: ClassVar[Sequence[int]] = (2, 2, 2, 2)

    def stages(self) -> tuple[int, Sequence[int]]:
        """Return the channels of the first stage, and the number of blocks of each."""
        return self.width, self.sizes


class ResNet34(ResNet18):
    """ResNet-34."""

    sizes: ClassVar[Sequence[int]] = (3, 4, 6, 3)


class ResNet50(ResNet34):
    """ResNet-50: as many blocks as ResNet-34, with bottlenecks, so four times the channels."""

    block: ClassVar[type[nn.Module]] = BottleneckBlock


class PreActResNet18(ResNet18):
    """PreActResNet-18, stages of 1, 2, 4 and 8 times ``width`` channels (paper: ``width=64``)."""

    block: ClassVar[type[nn.Module]] = PreActBlock
    stem_norm: ClassVar[bool] = False
    final_norm: ClassVar[bool] = True


class PreActResNet18NoFinalNorm(PreActResNet18):
    """PreActResNet-18 whose last sum is pooled as it is."""

    final_norm: ClassVar[bool] = False


class PreActResNet18RawShortcut(PreActResNet18NoFinalNorm):
    """That of Wong et al. (Fast is better than free, 2020): shortcuts take the raw input."""

    block_options: ClassVar[Mapping[str, Any]] = {"raw_shortcut": True}


class DeepMindPreActResNet18(PreActResNet18):
    """That of Gowal et al. (Uncovering the limits of adversarial training, 2020).

    Shortcuts are 3x3 convolutions of the raw input, and padding is TensorFlow's.
    """

    activation: str = "silu"

    block_options: ClassVar[Mapping[str, Any]] = {"raw_shortcut": True, "shortcut_size": 3}
    conv_options: ClassVar[Mapping[str, Any]] = {"shifted": True}


class WideResNet(ResidualNetwork):
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
    block: ClassVar[type[nn.Module]] = PreActBlock
    stage: ClassVar[str] = "block"
    stem_norm: ClassVar[bool] = False
    final_norm: ClassVar[bool] = True
    conv_options: ClassVar[Mapping[str, Any]] = {
        "kernel_init": nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    }

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise UsageError(f"WideResNet of depth {self.depth}: must be 6n + 4, so 10, 16, 22 ...")
        if self.factor < 1:
            raise UsageError(f"WideResNet of widening factor {self.factor}: must be at least 1")
        masks = self.reverse_attention or self.last_block == "class_branches"
        if masks and self.depth < 16:
            raise UsageError(
                f"WideResNet of depth {self.depth} with masks on its last blocks: must be at least "
                "of depth 16, which has two blocks in its last group"
            )
        super().__post_init__()

    def stages(self) -> tuple[int, Sequence[int]]:
        """Return the channels of the first group, and the number of blocks of each."""
        return self.width * self.factor, [(self.depth - 4) // 6] * 3


class DeepMindWideResNet(WideResNet):
    """That of Gowal et al. (2020): padding is TensorFlow's."""

    activation: str = "silu"

    conv_options: ClassVar[Mapping[str, Any]] = {**WideResNet.conv_options, "shifted": True}


def _of_34(network: type[ResNet18]) -> type[ResNet18]:
    """Return the network with as many blocks as ResNet-34."""
    name = network.__name__.replace("18", "34")
    return type(name, (network,), {"sizes": ResNet34.sizes, "__doc__": network.__doc__})


_PREACT = {
    "preact_resnet{}": PreActResNet18,
    "preact_resnet{}_no_final_norm": PreActResNet18NoFinalNorm,
    "preact_resnet{}_raw_shortcut": PreActResNet18RawShortcut,
    "dm_preact_resnet{}": DeepMindPreActResNet18,
}
register("resnet18")(ResNet18.of_width)
register("resnet34")(ResNet34.of_width)
register("resnet50")(ResNet50.of_width)
for _name, _network in _PREACT.items():
    register(_name.format(18))(_network.of_width)
    register(_name.format(34))(_of_34(_network).of_width)
for _name, _wide in {"wide_resnet": WideResNet, "dm_wide_resnet": DeepMindWideResNet}.items():
    _examples = (f"{_name}28_10", f"{_name}34_10")
    register(_name + "{depth}_{factor}", examples=_examples)(_wide.of_width)
