"""Operations on every row of a batch."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from ancra_jax.ops.images import Flags, Images, Keys

Rows = TypeVar("Rows")

TINY = 1e-12
"""Added to a divisor that can be 0, such as a norm, so that 0 divided by it stays 0."""


def per_image(values: Shaped[Array, "batch"]) -> Shaped[Array, "batch 1 1 1"]:
    """Return one value per image in a shape that broadcasts over the image's pixels."""
    return values[:, None, None, None]


def select(mask: Flags, chosen: Rows, other: Rows) -> Rows:
    """Return the rows of ``chosen`` where ``mask`` holds, else those of ``other``.

    Both are pytrees of arrays over the batch.
    """

    def choose(x: Array, y: Array) -> Array:
        return jnp.where(jnp.expand_dims(mask, range(1, x.ndim)), x, y)

    return jax.tree.map(choose, chosen, other)


def gaussian_noise(keys: Keys, images: Images) -> Images:
    """Draw standard normal noise of the images' shape, for every image with its own key."""
    return jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys, images)
