"""When an image counts as adversarial."""

import jax
import jax.numpy as jnp

from ancra_jax.attacks.model import Logits, Model, as_pytree, misclassified
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.attacks.validation import forward
from ancra_jax.ops.images import AnyImages, AnyLabels, Flags, Images, Labels, Values

TOLERANCE = 1e-6
"""How far, on the [0, 1] pixel scale, rounding may carry a point out of the ball."""


@explains_old_calls
def is_adversarial(
    model: Model,
    candidates: AnyImages,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
) -> Flags:
    """Judge candidates by a fresh forward pass, whatever an attack believed of them.

    Returns:
      Whether the candidate is finite, in [0, 1], in the ball around its natural image (tolerance
      1e-6), and misclassified with finite logits.
    """
    arrays = jnp.asarray(candidates), jnp.asarray(images), jnp.asarray(labels)
    return judge(as_pytree(model), *arrays, threat_model)[0]


def judge(
    model: Model, candidates: Images, images: Images, labels: Labels, threat_model: ThreatModel
) -> tuple[Flags, Values]:
    """Return ``is_adversarial`` for a model that is a pytree, and the perturbations' norms."""
    return _verdict(forward(model, candidates), candidates, images, labels, threat_model)


@jax.jit
def _verdict(
    logits: Logits, candidates: Images, images: Images, labels: Labels, threat_model: ThreatModel
) -> tuple[Flags, Values]:
    norms = threat_model.norm(candidates - images)
    finite = jnp.all(jnp.isfinite(candidates), axis=(1, 2, 3))
    in_range = jnp.all((candidates >= 0) & (candidates <= 1), axis=(1, 2, 3))
    in_ball = norms <= threat_model.epsilon + TOLERANCE
    return misclassified(logits, labels) & finite & in_range & in_ball, norms
