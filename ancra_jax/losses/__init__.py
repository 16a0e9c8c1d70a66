"""Training losses: pure functions of logits and labels, each equation in one place."""

from ancra_jax.losses.basic import cross_entropy as cross_entropy
from ancra_jax.losses.basic import kl_divergence as kl_divergence
from ancra_jax.losses.distillation import distillation as distillation
from ancra_jax.losses.heads import combined as combined
from ancra_jax.losses.mart import boosted_cross_entropy as boosted_cross_entropy
from ancra_jax.losses.mart import weighted_kl as weighted_kl
from ancra_jax.losses.negative_contrast import asymmetric_similarity as asymmetric_similarity
from ancra_jax.losses.second_order import class_targets as class_targets
from ancra_jax.losses.second_order import second_order_divergence as second_order_divergence
from ancra_jax.losses.self_adaptive import adapted_labels as adapted_labels
from ancra_jax.losses.self_adaptive import (
    self_adaptive_cross_entropy as self_adaptive_cross_entropy,
)
