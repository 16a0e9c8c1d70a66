"""Arrays over a batch of images."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

Images = Float[Array, "batch height width channels"]

TINY = 1e-12
"""Added to a divisor that can be 0, such as a norm, so that 0 divided by it stays 0."""


def per_image(values: Shaped[Array, "batch"]) -> Shaped[Array, "batch 1 1 1"]:
    """Return one value per image in a shape that broadcasts over the image's pixels."""
    return values[:, None, None, None]


def select(mask: Bool[Array, "batch"], chosen: Images, other: Images) -> Images:
    """Return every image of ``chosen`` where ``mask`` holds, and of ``other`` elsewhere."""
    return jnp.where(per_image(mask), chosen, other)
