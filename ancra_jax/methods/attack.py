"""The attacks inside training, with batch normalisation and attention in the evaluation phase."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ancra_jax import attacks
from ancra_jax.attacks import objectives
from ancra_jax.attacks.objectives import Objective
from ancra_jax.config.schema import AttackConfig, Config
from ancra_jax.ops.images import Images, Keys, Labels, Values
from ancra_jax.types import Outputs

Model = Callable[[Images], Outputs]
MethodState = dict[str, PyTree]
"""What a method remembers from step to step, by name; wrappers add names of their own."""
Attacked = tuple[dict[str, Images], MethodState]
"""The attacked images by the name of their request, and the method's state after the attack."""

START_SIGMA = 0.001  # of the gaussian start, on the [0, 1] pixel scale (TRADES)


@dataclass(frozen=True, kw_only=True)
class AttackSettings(AttackConfig):
    """The configured attack, of one kind; requests of the same kind run as one batch."""

    aux_weight: float  # of the auxiliary heads in the objective; 0 attacks the final logits only

    @property
    def threat_model(self) -> attacks.ThreatModel:
        """The ball around every image."""
        return attacks.threat_model(self.norm, self.epsilon)


def attack_settings(config: Config) -> AttackSettings:
    """Return the training attack as a configuration describes it."""
    return AttackSettings(**vars(config.attack), aux_weight=config.method.aux_weight)


class AttackRequest(NamedTuple):
    """Images to attack."""

    settings: AttackSettings  # the kind of attack
    images: Images  # natural
    labels: Labels  # classes in the objective (not used by 'kl')
    descend: bool  # the objective, toward the labels (paper eq. 5); or ascend it (eq. 2)
    keys: Keys  # for the random starts


def run_requests(
    model: Model,
    requests: dict[str, AttackRequest],
    state: MethodState,
    ball: Callable[[attacks.ThreatModel], attacks.ThreatModel] = lambda ball: ball,
) -> Attacked:
    """Attack all images of all requests; those of one kind together, as one larger batch.

    The model is the network in the evaluation phase. ``ball`` makes the ball that an attack moves
    in out of the threat model of its settings. The state is returned as it was.
    """
    names_of: dict[AttackSettings, list[str]] = {}
    for name, request in requests.items():
        names_of.setdefault(request.settings, []).append(name)
    attacked: dict[str, Images] = {}
    for settings, names in names_of.items():
        group = [requests[name] for name in names]
        images = _interleave([request.images for request in group])
        labels = _interleave([request.labels for request in group])
        keys = _interleave([request.keys for request in group])
        signs = [jnp.full(len(r.labels), -1.0 if r.descend else 1.0, jnp.float32) for r in group]
        threat_model = ball(settings.threat_model)
        result = attacks.ascend(
            signed_objective(model, settings, images, labels, _interleave(signs)),
            random_start(settings, threat_model, keys, images),
            images,
            threat_model,
            step_size=settings.step_size,
            num_steps=settings.num_steps,
            loop="compiled",
        )
        attacked |= {name: result[i :: len(group)] for i, name in enumerate(names)}
    return attacked, state


def random_start(
    settings: AttackSettings, threat_model: attacks.ThreatModel, keys: Keys, images: Images
) -> Images:
    """Draw where the attack on ``images`` starts, in the manner of ``settings.start``."""
    if settings.start == "gaussian":
        return attacks.gaussian_start(keys, images, sigma=START_SIGMA)
    return threat_model.random_start(keys, images)


def _interleave(arrays: list[Array]) -> Array:
    """Return one batch of several."""
    # Neighbours belong to one example, so that every part of a sharded batch stays on its device.
    return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def signed_objective(
    model: Model, settings: AttackSettings, images: Images, labels: Labels, sign: Values
) -> Objective:
    """Return what the attack ascends: the objective of ``settings`` times each example's sign."""
    objective: Objective
    if settings.objective == "kl":
        objective = objectives.kl_divergence(model, model(images), aux_weight=settings.aux_weight)
    else:
        objective = objectives.cross_entropy(model, labels, aux_weight=settings.aux_weight)
    return jax.tree_util.Partial(_signed, objective, sign)


def _signed(objective: Objective, sign: Values, images: Images) -> Values:
    return sign * objective(images)
