"""WideResNet-d-k for small images (Zagoruyko and Komodakis, 2016), without dropout."""

from functools import partial
from typing import ClassVar

import flax.linen as nn

from ancra_jax.errors import UsageError
from ancra_jax.models.layers import BatchNorm, Conv, FeatureMap
from ancra_jax.models.network import Network, Trunk, residual_blocks
from ancra_jax.models.preact_resnet import PreActBlock

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
        """Computes the stem and all residual blocks but the last two."""
        x = Conv(self.width, dtype=self.dtype, kernel_init=_kernel_init, name="conv1")(images)
        *early, last_but_one, last = residual_blocks(
            partial(PreActBlock, dtype=self.dtype, kernel_init=_kernel_init),
            [self.width * self.factor * 2**i for i in range(3)],
            blocks_per_stage=(self.depth - 4) // 6,
            prefix="block",
            train=train,
        )
        for block in early:
            x = block(x)
        final_norm = BatchNorm(name="bn")
        return Trunk(x, (last_but_one, last), lambda x: nn.relu(final_norm(x, train=train)))
