"""How the masks of reverse attention stand to the final prediction, as numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ancra_jax.attacks.gradients import value_and_input_gradient
from ancra_jax.attacks.model import LogitsFn, as_pytree, model_outputs
from ancra_jax.attacks.placement import Placement
from ancra_jax.defences.attention_objective import AttentionObjective, ascent

Images = Float[np.ndarray, "examples height width channels"]


def gate_statistics(
    predict: LogitsFn,
    images: Images,
    adversarial: Images,
    labels: Int[np.ndarray, "examples"],
    broken: Bool[np.ndarray, "examples"],
    placement: Placement,
) -> dict[str, float | None]:
    """How often the final prediction is the last mask's class, and whether their gradients agree.

    Args:
      predict: a network with reverse attention on two blocks.
      images: natural images.
      adversarial: an adversarial image where ``broken``.
      labels: class numbers.
      broken: examples that some attack broke.
      placement: of the batches.

    Returns:
      ``final_is_last_mask`` (argmax f = c_2) and ``masks_agree`` (c_1 = c_2) on the natural images,
      both also with ``_adversarial``; ``last_mask_changes`` (c_2 differs from the natural image's)
      on the adversarial ones; ``gradient_cosine``, the mean of the cosine between the gradients of
      f_y - f_k and a_2[y] - a_2[k] on the natural images, k the largest wrong logit of a_2. None
      where there are no such examples.
    """
    predict = placement.replicate(as_pytree(predict))
    natural = _over_batches(_predictions, predict, placement, np.arange(len(images)), images)
    rows = np.flatnonzero(broken)
    attacked = _over_batches(_predictions, predict, placement, rows, adversarial)
    cosines = _over_batches(_cosine, predict, placement, np.arange(len(images)), images, labels)
    return {
        "final_is_last_mask": _mean(natural[:, 2] == natural[:, 1]),
        "masks_agree": _mean(natural[:, 0] == natural[:, 1]),
        "final_is_last_mask_adversarial": _mean(attacked[:, 2] == attacked[:, 1]),
        "masks_agree_adversarial": _mean(attacked[:, 0] == attacked[:, 1]),
        "last_mask_changes": _mean(attacked[:, 1] != natural[rows, 1]),
        "gradient_cosine": _mean(cosines),
    }


def _over_batches(function, predict, placement, rows, *arrays):
    """A function of a batch over the given rows, batch by batch."""
    parts = [
        np.asarray(function(predict, *placement.place(tuple(array[batch] for array in arrays))))[
            active
        ]
        for batch, active in placement.batches(rows)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 3))


@jax.jit
def _predictions(predict, images) -> Int[Array, "batch 3"]:
    """c_1, c_2 and argmax f."""
    logits, aux_logits = model_outputs(predict, images)
    return jnp.argmax(jnp.concatenate([aux_logits, logits[None]]), axis=-1).T


def _cosine(predict, images, labels) -> Float[Array, "batch"]:
    final = _gradient(predict, images, labels, ascent("targeted_margin", (0, 0, 1)))
    last_mask = _gradient(predict, images, labels, ascent("targeted_margin", (0, 1, 0)))
    dot = jnp.sum(final * last_mask, axis=(1, 2, 3))
    norms = jnp.sqrt(jnp.sum(final**2, (1, 2, 3)) * jnp.sum(last_mask**2, (1, 2, 3)))
    return dot / (norms + 1e-30)


@jax.jit
def _gradient(predict, images, labels, what):
    """Of z_k - z_y, k being the largest wrong logit of a_2."""
    gate = model_outputs(predict, images)[1][-1]
    wrong = jnp.where(jax.nn.one_hot(labels, gate.shape[-1], dtype=bool), -jnp.inf, gate)
    objective = AttentionObjective(predict, what, labels, jnp.argmax(wrong, axis=-1))
    return value_and_input_gradient(objective, images)[1]


def _mean(values):
    return float(np.mean(values)) if len(values) else None
