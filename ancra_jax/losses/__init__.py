"""Training losses: pure functions of logits and labels, each equation in one place."""

from ancra_jax.losses.basic import cross_entropy as cross_entropy
from ancra_jax.losses.basic import kl_divergence as kl_divergence
from ancra_jax.losses.heads import combined as combined
from ancra_jax.losses.negative_contrast import asymmetric_similarity as asymmetric_similarity
