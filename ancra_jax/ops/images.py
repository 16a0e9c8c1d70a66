"""Arrays over a batch of images."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

Images = Float[Array, "batch height width channels"]
Labels = Int[Array, "batch"]
Flags = Bool[Array, "batch"]
Values = Float[Array, "batch"]
Keys = Key[Array, "batch"]

AnyImages = Images | Float[np.ndarray, "batch height width channels"]
AnyLabels = Labels | Int[np.ndarray, "batch"]
AnyFlags = Flags | Bool[np.ndarray, "batch"]

TINY = 1e-12
"""Added to a divisor that can be 0, such as a norm, so that 0 divided by it stays 0."""


def per_image(values: Shaped[Array, "batch"]) -> Shaped[Array, "batch 1 1 1"]:
    """Return one value per image in a shape that broadcasts over the image's pixels."""
    return values[:, None, None, None]


def select(mask: Flags, chosen: Images, other: Images) -> Images:
    """Return every image of ``chosen`` where ``mask`` holds, and of ``other`` elsewhere."""
    return jnp.where(per_image(mask), chosen, other)


def gaussian_noise(keys: Keys, images: Images) -> Images:
    """Draw standard normal noise of the images' shape, for every image with its own key."""
    return jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys, images)
