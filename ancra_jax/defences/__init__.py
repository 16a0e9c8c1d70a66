"""What the networks' defences declare to the adaptive attacks; importing this registers them."""

from ancra_jax.defences.branches import branch_maximum as branch_maximum
from ancra_jax.defences.gate import gate_statistics as gate_statistics
from ancra_jax.defences.reverse_attention import reverse_attention as reverse_attention
