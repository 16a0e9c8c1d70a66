"""Training losses: pure functions of logits and labels, each equation in one place."""

from ancra_jax.losses.classification import adapted_labels as adapted_labels
from ancra_jax.losses.classification import boosted_cross_entropy as boosted_cross_entropy
from ancra_jax.losses.classification import class_targets as class_targets
from ancra_jax.losses.classification import cross_entropy as cross_entropy
from ancra_jax.losses.classification import distillation as distillation
from ancra_jax.losses.classification import kl_divergence as kl_divergence
from ancra_jax.losses.classification import second_order_divergence as second_order_divergence
from ancra_jax.losses.classification import (
    self_adaptive_cross_entropy as self_adaptive_cross_entropy,
)
from ancra_jax.losses.classification import weighted_kl as weighted_kl
from ancra_jax.losses.heads import combined as combined
from ancra_jax.losses.negative_contrast import asymmetric_similarity as asymmetric_similarity
