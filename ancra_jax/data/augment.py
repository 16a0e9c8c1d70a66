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

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise UsageError(f"crop_padding must be at least 0 pixels; got {self.crop_padding}")


def augment(
    images: UInt8[Array, "batch height width channels"],
    indices: Int[Array, "batch"],
    key: Key[Array, ""],
    augmentation: Augmentation,
) -> UInt8[Array, "batch height width channels"]:
    """Crop, then flip each image.

    Args:
      images: a batch.
      indices: its examples' positions in the data set. What is drawn for an image depends on the
        key and its index alone, not on the rest of the batch.
      key: of this step.
      augmentation: what to do; with nothing to do, returns ``images``.
    """
    padding = augmentation.crop_padding
    if not padding and not augmentation.horizontal_flip:
        return images

    def augment_one(
        image: UInt8[Array, "height width channels"], index: Int[Array, ""]
    ) -> UInt8[Array, "height width channels"]:
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, index))
        if padding:
            padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
            top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
            image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
        if augmentation.horizontal_flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    return jax.vmap(augment_one)(images, indices)
