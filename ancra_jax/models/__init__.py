"""Networks: ResNets, PreActResNets and WideResNets, plain or with reverse attention.

`create` makes a network by name, ``@register("mine")`` makes one of one's own known. The one part
of the library that knows Linen; everything else sees pure functions from variables and images to
`ancra_jax.types.Outputs`.
"""

from ancra_jax.models.folding import BoundNetwork, folded
from ancra_jax.models.network import available, create, register
from ancra_jax.models.resnet import PreActResNet18, ResNet18, WideResNet
from ancra_jax.models.reverse_attention import (
    AttentionRule,
    SoftAttention,
    hard_attention,
    reverse_attention,
)

__all__ = [
    "AttentionRule",
    "BoundNetwork",
    "PreActResNet18",
    "ResNet18",
    "SoftAttention",
    "WideResNet",
    "available",
    "create",
    "folded",
    "hard_attention",
    "register",
    "reverse_attention",
]
