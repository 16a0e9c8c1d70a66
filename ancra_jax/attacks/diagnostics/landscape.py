"""How the loss looks around an image: under random noise, and over a grid in two directions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ancra_jax.attacks.gradients import value_and_input_gradient
from ancra_jax.attacks.job import Arrays, Batch, Job, Known
from ancra_jax.attacks.model import Images, Model, example_keys, float32_logits, fold_each
from ancra_jax.attacks.objectives import LogitsObjective, cross_entropy, margin_term
from ancra_jax.attacks.threat_models import Linf

NOISE_DRAWS, NOISE = 100, 4 / 255
LANDSCAPE_EXAMPLES, LANDSCAPE_POINTS, LANDSCAPE_REACH = 4, 21, 2.0


def noise(job: Job, known: Known) -> Arrays:
    """Measure the mean relative change of the margin under random noise within 4/255.

    Each change counts at most 1. The margin and not the cross-entropy, whose relative changes say
    nothing where it is near 0.
    """

    def compute(batch: Batch) -> Arrays:
        model = job.judging_model("attack noise", 0, batch)
        keys = example_keys(job.purpose_key("noise"), batch.indices)
        margins = _margins(model, batch.images, batch.labels)
        changes = [
            _noise_change(model, batch.images, batch.labels, fold_each(keys, draw), margins)
            for draw in range(NOISE_DRAWS)
        ]
        return {"change": np.mean(jax.device_get(changes), axis=0)}

    return job.over_batches(np.arange(len(job.images)), compute)


def landscape(job: Job, known: Known) -> Arrays:
    """Measure the cross-entropy around a few images, along the gradient's sign and random signs.

    ``offsets`` are those of both directions, on the [0, 1] pixel scale; ``losses`` are
    [examples, gradient, random].
    """
    chosen = np.arange(min(LANDSCAPE_EXAMPLES, len(job.images)))
    reach = LANDSCAPE_REACH * float(job.threat_model.epsilon)
    if not isinstance(job.threat_model, Linf):  # the Linf reach of a step of that length
        reach /= float(np.sqrt(job.images[0].size))
    offsets = np.linspace(-reach, reach, LANDSCAPE_POINTS, dtype=np.float32)
    few = replace(job, placement=job.placement.smaller(len(chosen)))
    batch = next(few.batches(chosen))
    objective = cross_entropy(job.judging_model("attack landscape", 0, batch), batch.labels)
    keys = example_keys(job.purpose_key("landscape"), batch.indices)
    directions = _directions(objective, batch.images, keys)
    losses = [
        [_value(objective, _moved(batch.images, directions, along, across)) for across in offsets]
        for along in offsets
    ]
    grid = np.asarray(jax.device_get(losses))  # [gradient, random, batch]
    return {"offsets": offsets, "losses": grid.transpose(2, 0, 1)[: len(chosen)]}


@jax.jit
def _margins(model: Model, images: Images, labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    return margin_term(float32_logits(model, images), labels)


@jax.jit
def _noise_change(
    model: Model,
    images: Images,
    labels: Int[Array, "batch"],
    keys: Key[Array, "batch"],
    margins: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    noisy = jnp.clip(images + NOISE * Linf(NOISE).noise(keys, images), 0.0, 1.0)
    change = jnp.abs(_margins(model, noisy, labels) - margins)
    return jnp.minimum(change / (jnp.abs(margins) + 1e-12), 1.0)


@jax.jit
def _directions(
    objective: LogitsObjective, images: Images, keys: Key[Array, "batch"]
) -> tuple[Images, Images]:
    _, gradients = value_and_input_gradient(objective, images)
    random = jax.vmap(lambda key, x: jax.random.rademacher(key, x.shape, x.dtype))(keys, images)
    return jnp.sign(gradients), random


@jax.jit
def _moved(
    images: Images,
    directions: tuple[Images, Images],
    along: Float[Array, ""],
    across: Float[Array, ""],
) -> Images:
    return jnp.clip(images + along * directions[0] + across * directions[1], 0.0, 1.0)


@jax.jit
def _value(objective: LogitsObjective, images: Images) -> Float[Array, "batch"]:
    return objective(images)
