"""WideResNet-d-k for small images (Zagoruyko and Komodakis, 2016), without dropout."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn

from ancra_jax.errors import UsageError
from ancra_jax.models.layers import BatchNorm, Conv, FeatureMap
from ancra_jax.models.network import Network, Trunk, residual_blocks
from ancra_jax.models.preact_resnet import PreActBlock
from ancra_jax.models.registry import register

# N(0, sqrt(2 / (k * k * out))).
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class WideResNet(Network):
    """WideResNet of any depth ``6n + 4`` and widening factor.

    Its three groups of ``n`` blocks have 1, 2 and 4 times ``width * factor`` channels; the stem has
    ``width`` (paper: ``width=16``, so that WideResNet-28-10 ends in 640 channels).

    Attributes:
      depth: number of convolutions, 10, 16, 22, 28, 34 ...; at least 16 with reverse attention,
        which needs two blocks in the last group.
      factor: widening factor.
    """

    width: int = 16
    depth: int = 28
    factor: int = 10

    total_stride: ClassVar[int] = 4
    pool_window: ClassVar[int] = 8
    zero_classifier_bias: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise UsageError(
                f"WideResNet of depth {self.depth}: depths 6n + 4 are allowed, 10, 16, 22, 28 ..."
            )
        if self.factor < 1:
            raise UsageError(f"WideResNet of widening factor {self.factor}: at least 1 is needed")
        if self.reverse_attention and self.depth < 16:
            raise UsageError(
                f"WideResNet of depth {self.depth} with reverse attention: its last group needs "
                "two blocks, depth 16 or more"
            )
        super().__post_init__()

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make the residual blocks and the final activation."""
        x = Conv(self.width, dtype=self.dtype, kernel_init=_kernel_init, name="conv1")(images)
        block = partial(PreActBlock, dtype=self.dtype, kernel_init=_kernel_init)
        groups = [self.width * self.factor * 2**i for i in range(3)]
        count = (self.depth - 4) // 6
        blocks = residual_blocks(block, groups, count, prefix="block", train=train)
        norm = BatchNorm(name="bn")
        return Trunk(x, blocks, lambda x: nn.relu(norm(x, train=train)))


@register("wide_resnet{depth}_{factor}", examples=("wide_resnet28_10", "wide_resnet34_10"))
def wide_resnet(*, width: int | None, **options: Any) -> WideResNet:
    """Create a WideResNet, with a stem of the paper's width if there is none."""
    return WideResNet(width=width or WideResNet.width, **options)
