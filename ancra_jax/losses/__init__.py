"""Training losses: pure functions of logits and labels, each equation in one place."""

from ancra_jax.losses.classification import (
    adapted_labels,
    boosted_cross_entropy,
    class_targets,
    cross_entropy,
    distillation,
    kl_divergence,
    second_order_divergence,
    self_adaptive_cross_entropy,
    weighted_kl,
)
from ancra_jax.losses.heads import combined
from ancra_jax.losses.negative_contrast import asymmetric_similarity

__all__ = [
    "adapted_labels",
    "asymmetric_similarity",
    "boosted_cross_entropy",
    "class_targets",
    "combined",
    "cross_entropy",
    "distillation",
    "kl_divergence",
    "second_order_divergence",
    "self_adaptive_cross_entropy",
    "weighted_kl",
]
