"""Networks: ResNet-18, PreActResNet-18 and WideResNets, plain or with reverse attention.

The one part of the library that knows Flax; everything else sees pure functions from variables and
images to `ancra_jax.types.Outputs`.
"""

from typing import Any

import flax.linen as nn

from ancra_jax.models.preact_resnet import PreActResNet18
from ancra_jax.models.registry import available, create, register
from ancra_jax.models.resnet import ResNet18
from ancra_jax.models.reverse_attention import AttentionRule, hard_attention, reverse_attention
from ancra_jax.models.wide_resnet import WideResNet

__all__ = [
    "AttentionRule",
    "PreActResNet18",
    "ResNet18",
    "WideResNet",
    "available",
    "create",
    "hard_attention",
    "register",
    "reverse_attention",
]


@register("resnet18")
def _resnet18(*, width: int | None, **options: Any) -> nn.Module:
    return ResNet18(width=width or 64, **options)


@register("preact_resnet18")
def _preact_resnet18(*, width: int | None, **options: Any) -> nn.Module:
    return PreActResNet18(width=width or 64, **options)


@register("wide_resnet{depth}_{factor}", examples=("wide_resnet28_10", "wide_resnet34_10"))
def _wide_resnet(*, width: int | None, **options: Any) -> nn.Module:
    return WideResNet(width=width or 16, **options)
