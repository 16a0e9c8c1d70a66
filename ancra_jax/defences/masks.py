"""How the masks of reverse attention stand to the final prediction, as numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ancra_jax.attacks.job import HostImages, Numbers, Placement
from ancra_jax.attacks.model import Model, as_pytree, model_outputs
from ancra_jax.attacks.objectives import value_and_input_gradient
from ancra_jax.defences.attention_objective import Ascent, AttentionObjective, ascent
from ancra_jax.ops.images import Images, Labels, Values


def mask_statistics(
    predict: Model,
    images: HostImages,
    adversarial: HostImages,
    labels: Numbers,
    broken: Bool[np.ndarray, "examples"],
    placement: Placement,
) -> dict[str, float | None]:
    """Measure how often the final prediction is the last mask's class, and how gradients agree.

    Args:
      predict: a network with reverse attention on two blocks.
      images, labels: natural images and their class numbers.
      adversarial: adversarial images where ``broken``.
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

    def over(function: Callable[..., Array], chosen: Numbers, *arrays: np.ndarray) -> np.ndarray:
        parts = [
            np.asarray(function(predict, *placement.place([array[rows] for array in arrays])))
            for rows, _ in placement.batches(chosen)
        ]
        return np.concatenate(parts)[: len(chosen)] if parts else np.zeros((0, 3), np.int32)

    everything = np.arange(len(images))
    attacked = np.flatnonzero(broken)
    first, last, final = over(_classes, everything, images).T
    first_then, last_then, final_then = over(_classes, attacked, adversarial).T
    return {
        "final_is_last_mask": _mean(final == last),
        "masks_agree": _mean(first == last),
        "final_is_last_mask_adversarial": _mean(final_then == last_then),
        "masks_agree_adversarial": _mean(first_then == last_then),
        "last_mask_changes": _mean(last_then != last[attacked]),
        "gradient_cosine": _mean(over(_cosine, everything, images, labels)),
    }


@jax.jit
def _classes(predict: Model, images: Images) -> Int[Array, "batch 3"]:
    """Return c_1, c_2 and argmax f."""
    logits, aux_logits = model_outputs(predict, images)
    return jnp.argmax(jnp.concatenate([aux_logits, logits[None]]), axis=-1).T


def _cosine(predict: Model, images: Images, labels: Labels) -> Values:
    final = _gradient(predict, images, labels, ascent("targeted_margin", (0, 0, 1)))
    last_mask = _gradient(predict, images, labels, ascent("targeted_margin", (0, 1, 0)))
    dot = jnp.sum(final * last_mask, axis=(1, 2, 3))
    norms = jnp.sqrt(jnp.sum(final**2, (1, 2, 3)) * jnp.sum(last_mask**2, (1, 2, 3)))
    return dot / (norms + 1e-30)


@jax.jit
def _gradient(predict: Model, images: Images, labels: Labels, what: Ascent) -> Images:
    """Return the gradient of z_k - z_y, k being the largest wrong logit of a_2."""
    a_2 = model_outputs(predict, images)[1][-1]
    wrong = jnp.where(jax.nn.one_hot(labels, a_2.shape[-1], dtype=bool), -jnp.inf, a_2)
    objective = AttentionObjective(predict, what, labels, jnp.argmax(wrong, axis=-1))
    return value_and_input_gradient(objective, images)[1]


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
