"""Random crops and flips of training images, under jit."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt8

from ancra_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images; hashable, so it can be a static argument.

    Attributes:
      crop_padding: pixels of zeros added on every side before a crop of the original size is taken
        at a uniformly random place; 0: no crop.
      horizontal_flip: whether images are mirrored with probability 1/2.

    Raises:
      UsageError: ``crop_padding`` is negative.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False

    def __post_init__(self):
        if self.crop_padding < 0:
            raise UsageError(f"crop_padding must be at least 0 pixels; got {self.crop_padding}")


def augment(
    images: UInt8[Array, "batch height width channels"],
    indices: Int[Array, "batch"],
    key: Key[Array, ""],
    augmentation: Augmentation,
) -> UInt8[Array, "batch height width channels"]:
    """Crops, then flips each image.

    Args:
      images: a batch.
      indices: its examples' positions in the data set. An image's draw depends on the key and its
        index alone, not on the rest of the batch.
      key: of this step.
      augmentation: what to do; with nothing to do, returns ``images``.
    """
    if not augmentation.crop_padding and not augmentation.horizontal_flip:
        return images

    def augment_one(image: Array, index: Array) -> Array:
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, index))
        if augmentation.crop_padding:
            image = _random_crop(image, crop_key, augmentation.crop_padding)
        if augmentation.horizontal_flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    return jax.vmap(augment_one)(images, indices)


def _random_crop(image: Array, key: Array, padding: int) -> Array:
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
