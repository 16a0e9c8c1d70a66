"""The attacks inside training, with batch normalisation and attention in the evaluation phase."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ancra_jax import attacks
from ancra_jax.attacks import objectives
from ancra_jax.attacks.objectives import Objective
from ancra_jax.types import Outputs

Images = Float[Array, "batch height width channels"]
Predict = Callable[[Images], Outputs]

START_SIGMA = 0.001  # of the gaussian start, on the [0, 1] pixel scale (TRADES)


@dataclass(frozen=True)
class AttackSettings:
    """One kind of attack; requests of the same kind run as one batch.

    Attributes:
      objective: ``'cross_entropy'`` or ``'kl'`` (to the prediction for the natural image).
      threat_model: the ball around every image.
      step_size: of one step, on the [0, 1] pixel scale.
      num_steps: how many steps.
      start: ``'gaussian'`` (natural image + 0.001 N(0, 1)) or ``'uniform'`` (in the ball).
      aux_weight: weight of the auxiliary heads in the objective; 0 attacks the final logits only.
    """

    objective: str
    threat_model: attacks.ThreatModel
    step_size: float
    num_steps: int
    start: str
    aux_weight: float


class AttackRequest(NamedTuple):
    """Images to attack.

    Attributes:
      settings: the kind of attack.
      images: where it starts from.
      labels: classes in the objective (not used by ``'kl'``).
      descend: ``False`` ascends the objective (untargeted, paper eq. 2), ``True`` descends it
        (toward ``labels``, paper eq. 5).
      keys: one per image, for the random start.
    """

    settings: AttackSettings
    images: Images
    labels: Int[Array, "batch"]
    descend: bool
    keys: Key[Array, "batch"]


def same_ball(threat_model: attacks.ThreatModel) -> attacks.ThreatModel:
    """Leaves a request's threat model as it is."""
    return threat_model


def run_requests(
    predict: Predict,
    requests: dict[str, AttackRequest],
    ball: Callable[[attacks.ThreatModel], attacks.ThreatModel] = same_ball,
) -> dict[str, Images]:
    """Attacks all images of all requests; those of one kind together, as one larger batch.

    Args:
      predict: the network in the evaluation phase.
      requests: by name.
      ball: makes the ball that the attack moves in of a request's threat model.

    Returns:
      The attacked images by the requests' names.
    """
    names_of: dict[AttackSettings, list[str]] = {}
    for name, request in requests.items():
        names_of.setdefault(request.settings, []).append(name)
    attacked: dict[str, Images] = {}
    for settings, names in names_of.items():
        group = [requests[name] for name in names]
        results = _run_group(predict, settings, group, ball(settings.threat_model))
        attacked.update(zip(names, results, strict=True))
    return attacked


def _run_group(predict, settings, group, threat_model):
    images = _interleave([request.images for request in group])
    labels = _interleave([request.labels for request in group])
    keys = _interleave([request.keys for request in group])
    sign = _interleave(
        [jnp.full(len(r.labels), -1.0 if r.descend else 1.0, jnp.float32) for r in group]
    )
    result = attacks.ascend(
        signed_objective(predict, settings, images, labels, sign),
        random_start(settings, threat_model, keys, images),
        images,
        threat_model,
        step_size=settings.step_size,
        num_steps=settings.num_steps,
        loop="compiled",
    )
    return [result[i :: len(group)] for i in range(len(group))]


def random_start(
    settings: AttackSettings,
    threat_model: attacks.ThreatModel,
    keys: Key[Array, "batch"],
    images: Images,
) -> Images:
    """Where the attack on ``images`` starts, in the manner of ``settings.start``."""
    if settings.start == "gaussian":
        return attacks.gaussian_start(keys, images, sigma=START_SIGMA)
    return threat_model.random_start(keys, images)


def _interleave(arrays):
    """One batch of several: neighbours belong to one example, so a sharded batch stays in place."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def signed_objective(
    predict: Predict,
    settings: AttackSettings,
    images: Images,
    labels: Int[Array, "batch"],
    sign: Float[Array, "batch"],
) -> Objective:
    """What the attack ascends: the objective of ``settings`` times each example's sign."""
    objective: Objective
    if settings.objective == "kl":
        objective = objectives.kl_divergence(
            predict, predict(images), aux_weight=settings.aux_weight
        )
    else:
        objective = objectives.cross_entropy(predict, labels, aux_weight=settings.aux_weight)
    return jax.tree_util.Partial(_signed, objective, sign)


def _signed(objective, sign, images):
    return sign * objective(images)
