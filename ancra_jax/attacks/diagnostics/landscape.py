"""How the loss looks around an image: under random noise, and over a grid in two directions."""

import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax.attacks.gradients import value_and_input_gradient
from ancra_jax.attacks.job import Job, Known, over_batches
from ancra_jax.attacks.model import example_keys, float32_logits, fold_each
from ancra_jax.attacks.objectives import cross_entropy, margin_term
from ancra_jax.attacks.threat_models import Linf

NOISE_DRAWS, NOISE = 100, 4 / 255
LANDSCAPE_EXAMPLES, LANDSCAPE_POINTS, LANDSCAPE_REACH = 4, 21, 2.0


def noise(job: Job, known: Known) -> dict[str, np.ndarray]:
    """Mean relative change of the margin under random noise within 4/255, each at most 1.

    The margin and not the cross-entropy, whose relative changes say nothing where it is near 0.
    """
    del known

    def compute(x, y, indices, active):
        model = job.judged_model("attack noise", 0, indices)
        keys = example_keys(job.purpose_key("noise"), indices)
        margins = _margins(model, x, y)
        changes = [
            _noise_change(model, x, y, fold_each(keys, draw), margins)
            for draw in range(NOISE_DRAWS)
        ]
        return {"change": np.mean(jax.device_get(changes), axis=0)}

    return over_batches(job, np.arange(len(job.images)), compute)


def landscape(job: Job, known: Known) -> dict[str, np.ndarray]:
    """Cross-entropy around a few images, along the gradient's sign and along random signs.

    ``offsets`` are on the pixel scale, of both directions; ``losses`` [examples, gradient, random].
    """
    del known
    chosen = np.arange(min(LANDSCAPE_EXAMPLES, len(job.images)))
    reach = LANDSCAPE_REACH * float(job.threat_model.epsilon)
    if not isinstance(job.threat_model, Linf):  # the Linf reach of a step of that length
        reach /= float(np.sqrt(job.images[0].size))
    offsets = np.linspace(-reach, reach, LANDSCAPE_POINTS, dtype=np.float32)
    few = job.placement.smaller(len(chosen))
    rows, _ = next(few.batches(chosen))
    x, y, indices = few.place((job.images[rows], job.labels[rows], job.indices[rows]))
    objective = cross_entropy(job.judged_model("attack landscape", 0, indices), y)
    keys = example_keys(job.purpose_key("landscape"), indices)
    directions = _directions(objective, x, keys)
    losses = [
        [_value(objective, _moved(x, directions, along, across)) for across in offsets]
        for along in offsets
    ]
    grid = np.asarray(jax.device_get(losses))  # [gradient, random, batch]
    return {"offsets": offsets, "losses": grid.transpose(2, 0, 1)[: len(chosen)]}


@jax.jit
def _value(objective, images):
    return objective(images)


@jax.jit
def _margins(model, images, labels):
    return margin_term(float32_logits(model, images), labels)


@jax.jit
def _noise_change(model, images, labels, keys, margins):
    noisy = jnp.clip(images + NOISE * Linf(NOISE).noise(keys, images), 0.0, 1.0)
    change = jnp.abs(_margins(model, noisy, labels) - margins)
    return jnp.minimum(change / (jnp.abs(margins) + 1e-12), 1.0)


@jax.jit
def _directions(objective, images, keys):
    _, gradients = value_and_input_gradient(objective, images)
    random = jax.vmap(lambda key, x: jax.random.rademacher(key, x.shape, x.dtype))(keys, images)
    return jnp.sign(gradients), random


@jax.jit
def _moved(images, directions, along, across):
    return jnp.clip(images + along * directions[0] + across * directions[1], 0.0, 1.0)
