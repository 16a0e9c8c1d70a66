"""When an image counts as adversarial."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ancra_jax.attacks.model import AnyImages, AnyLabels, Images, Model, as_pytree, misclassified
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.attacks.validation import forward

TOLERANCE = 1e-6
"""How far, on the [0, 1] pixel scale, rounding may carry a point out of the ball."""


def inside(
    candidates: Images, images: Images, threat_model: ThreatModel, tolerance: float = TOLERANCE
) -> Bool[Array, "batch"]:
    """Whether candidates are finite, in [0, 1] and in the ball around ``images``."""
    finite = jnp.all(jnp.isfinite(candidates), axis=(1, 2, 3))
    in_range = jnp.all((candidates >= 0) & (candidates <= 1), axis=(1, 2, 3))
    in_ball = threat_model.norm(candidates - images) <= threat_model.epsilon + tolerance
    return finite & in_range & in_ball


@explains_old_calls
def is_adversarial(
    model: Model,
    candidates: AnyImages,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
) -> Bool[Array, "batch"]:
    """Judges candidates by a fresh forward pass, whatever an attack believed of them.

    Args:
      model: the model, see ``attacks.model.Model``; the final logits decide.
      candidates: images to judge.
      images: natural images.
      labels: class numbers.
      threat_model: the ball that candidates must lie in (tolerance 1e-6).

    Returns:
      Whether the candidate is finite, in [0, 1], in the ball, and misclassified with finite logits.
    """
    adversarial, _ = judge(
        as_pytree(model),
        jnp.asarray(candidates),
        jnp.asarray(images),
        jnp.asarray(labels),
        threat_model,
    )
    return adversarial


def judge(
    model: Model,
    candidates: Images,
    images: Images,
    labels: Int[Array, "batch"],
    threat_model: ThreatModel,
) -> tuple[Bool[Array, "batch"], Float[Array, "batch"]]:
    """``is_adversarial`` for a model that is a pytree, and the perturbations' norms."""
    return _verdict(forward(model, candidates), candidates, images, labels, threat_model)


@jax.jit
def _verdict(logits, candidates, images, labels, threat_model):
    adversarial = misclassified(logits, labels) & inside(candidates, images, threat_model)
    return adversarial, threat_model.norm(candidates - images)
