"""The asymmetric negative contrast (ANC) of the ANCRA paper."""

import jax
import jax.numpy as jnp

from ancra_jax.ops.images import Flags
from ancra_jax.types import Logits, Scalar


def asymmetric_similarity(natural: Logits, negative: Logits, valid: Flags, alpha: float) -> Scalar:
    """Measure how alike natural images and their negatives look where they are predicted alike.

    With probabilities ``p = softmax(natural)``, ``q = softmax(negative)`` and the predicted classes
    ``h = argmax p`` (paper eq. 3-4)::

        Sim = 1/B sum_i 1[h_i = argmax q_i] ( alpha       sqrt(sg(p_i[h_i]) q_i[h_i])
                                            + (1 - alpha) sqrt(p_i[h_i] sg(q_i[h_i])) )

    ``sg`` is ``stop_gradient``: with ``alpha = 1`` the natural image is frozen and only the
    negative is pushed away. The sum is divided by the batch size, not by the number of matches.

    Args:
      natural: logits of the natural images.
      negative: logits of their negatives, row by row.
      valid: pairs that exist; a batch of one class has no negatives and contributes 0.
      alpha: weight of the direction that freezes the natural image, in [0, 1].
    """
    p = jax.nn.softmax(natural)
    q = jax.nn.softmax(negative)
    predicted = jnp.argmax(p, axis=-1)
    matches = (predicted == jnp.argmax(q, axis=-1)) & valid
    # Where a pair does not count, the root is taken of 1: its gradient at 0 would be infinite,
    # and infinity times the mask's 0 is NaN. A matched product is at least 1 / classes ** 2.
    p_h = jnp.where(matches, jnp.take_along_axis(p, predicted[:, None], axis=-1)[:, 0], 1.0)
    q_h = jnp.where(matches, jnp.take_along_axis(q, predicted[:, None], axis=-1)[:, 0], 1.0)
    sg = jax.lax.stop_gradient
    similarity = alpha * jnp.sqrt(sg(p_h) * q_h) + (1 - alpha) * jnp.sqrt(p_h * sg(q_h))
    return jnp.mean(jnp.where(matches, similarity, 0.0))
