"""What networks' defences declare to the adaptive attacks; importing this registers those here."""

from ancra_jax.defences.branches import branch_maximum
from ancra_jax.defences.masks import mask_statistics
from ancra_jax.defences.registry import declared, names, register
from ancra_jax.defences.reverse_attention import reverse_attention

__all__ = [
    "branch_maximum",
    "declared",
    "mask_statistics",
    "names",
    "register",
    "reverse_attention",
]
