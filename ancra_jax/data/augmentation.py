"""Augmentation of training images on the devices, under jit.

References:
  Li and Spratling, Data Augmentation Alone Can Improve Adversarial Training, ICLR 2023, for
  CropShift and IDBH; Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

Pixels = UInt8[Array, "batch height width channels"]
Image = UInt8[Array, "height width channels"]
Number = Float[Array, ""]
ExampleKey = Key[Array, ""]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images; hashable, so it can be a static argument.

    A crop of the original size is taken at a uniformly random place of the image with
    ``crop_padding`` pixels of zeros on every side, if there are any. ``horizontal_flip`` mirrors
    images with probability 1/2. Then come `crop_shift`, one of the transformations of a ``palette``
    and `erase`, as far as they are asked for.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False
    largest_shift: int = 0  # of crop_shift, in pixels
    palette: str = ""  # a name of ``PALETTES``
    erasing: float = 0.0  # probability of random erasing
    erased_area: tuple[float, float] = (0.02, 0.33)  # least and most of the image


POLICIES = {
    "crop_shift": Augmentation(largest_shift=10),
    "idbh_weak": Augmentation(largest_shift=10, palette="color", erasing=0.5),
    "idbh_strong": Augmentation(largest_shift=10, palette="color", erasing=1.0),
    "idbh_svhn": Augmentation(
        largest_shift=8, palette="shape", erasing=1.0, erased_area=(0.02, 0.5)
    ),
}
"""Augmentations in the place of the random crop, as their authors have them; flips are apart."""

PALETTES = {
    "color": {
        "saturation": (1 / 8, 0.1, 1.9),
        "brightness": (1 / 8, 0.5, 1.9),
        "contrast": (1 / 8, 0.5, 1.9),
        "sharpness": (1 / 8, 0.1, 1.9),
        "autocontrast": (1 / 8, 0, 0),
        "equalize": (1 / 8, 0, 0),
        "shear": (1 / 8, 0.05, 0.15),
        "rotate": (1 / 8, 1, 11),
    },
    "shape": {
        "saturation": (0.08, 0.1, 1.9),
        "brightness": (0.08, 0.5, 1.9),
        "contrast": (0.04, 0.5, 1.9),
        "sharpness": (0.08, 0.1, 1.9),
        "autocontrast": (0.04, 0, 0),
        "equalize": (0.08, 0, 0),
        "shear": (0.3, 0.05, 0.35),
        "rotate": (0.3, 1, 31),
    },
}
"""Probability of each transformation, and the ends of its strength: a factor, or an angle.

Angles of shears are in radians, those of rotations whole degrees, the last of them excluded.
"""


def augment(
    images: Pixels, indices: Int[Array, "batch"], key: Key[Array, ""], augmentation: Augmentation
) -> Pixels:
    """Augment each image as the step's key and its index in the data set decide.

    What is drawn for an image does not depend on the rest of the batch. With nothing to do the
    images are returned as they are.
    """
    if augmentation == Augmentation():
        return images
    padding = augmentation.crop_padding

    def augment_one(image: Image, index: Int[Array, ""]) -> Image:
        example_key = jax.random.fold_in(key, index)
        crop_key, flip_key = jax.random.split(example_key)
        shift_key, palette_key, erasing_key = (
            jax.random.fold_in(example_key, number) for number in (2, 3, 4)
        )
        if padding:
            padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
            top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
            image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
        if augmentation.horizontal_flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        if augmentation.largest_shift:
            image = crop_shift(shift_key, image, augmentation.largest_shift)
        if augmentation.palette:
            image = transform_one_way(palette_key, image, augmentation.palette)
        if augmentation.erasing:
            image = erase(erasing_key, image, augmentation.erasing, augmentation.erased_area)
        return image

    return jax.vmap(augment_one)(images, indices)


def _below(number: Array | int, draw: Array) -> Array:
    """Return a whole number from 0 to below ``number``, uniform as the draw in [0, 1) is."""
    return jnp.floor(number * draw).astype(jnp.int32)


def crop_shift(key: ExampleKey, image: Image, largest: int) -> Image:
    """Cut rows and columns off, and move what is left within the image, on black.

    How many are cut off together is uniform in 0 to ``largest``; how many of them are columns, how
    many of these on the left, and where the rest then lies, are uniform too; the rows likewise.
    """
    draws = jax.random.uniform(key, (6,))
    strength = _below(largest + 1, draws[0])
    columns = _below(strength + 1, draws[1])
    lost = jnp.stack([strength - columns, columns])
    first, place = _below(lost + 1, draws[2:4]), _below(lost + 1, draws[4:])

    for axis in (0, 1):
        side = image.shape[axis]
        position = jnp.arange(side) - place[axis]
        inside = (position >= 0) & (position < side - lost[axis])
        taken = jnp.take(image, position + first[axis], axis=axis, mode="clip")
        image = jnp.where(jnp.expand_dims(inside, (1 - axis, 2)), taken, 0)
    return image


def erase(key: ExampleKey, image: Image, probability: float, area: tuple[float, float]) -> Image:
    """Make a rectangle black, with a probability.

    Its share of the image is uniform in ``area``, the logarithm of its height over its width
    between those of 0.3 and 3.3. The first of ten draws that is smaller than the image is taken, at
    a uniform place; without one the image stays as it is.
    """
    draws, (height, width, _) = jax.random.uniform(key, (23,)), image.shape
    pixels = height * width * (area[0] + (area[1] - area[0]) * draws[:10])
    ratio = 0.3 * (3.3 / 0.3) ** draws[10:20]
    heights, widths = jnp.round(jnp.sqrt(pixels * ratio)), jnp.round(jnp.sqrt(pixels / ratio))
    fits = (heights < height) & (widths < width)
    drawn = jnp.argmax(fits)
    sides = jnp.stack([heights[drawn], widths[drawn]]).astype(jnp.int32)
    room = jnp.maximum(jnp.asarray([height, width]) - sides, 0)
    first = _below(room + 1, draws[20:22])
    rows, columns = (
        (jnp.arange(side) >= first[axis]) & (jnp.arange(side) < first[axis] + sides[axis])
        for axis, side in enumerate((height, width))
    )
    erased = rows[:, None, None] & columns[None, :, None]
    erased &= jnp.any(fits) & (draws[22] < probability)
    return jnp.where(erased, 0, image)


def transform_one_way(key: ExampleKey, image: Image, palette: str) -> Image:
    """Do one of the transformations of a palette, of a strength that is uniform between its ends.

    Shears and rotations are as likely to either side, shears along either axis.
    """
    kinds = PALETTES[palette]
    draws = jax.random.uniform(key, (4,))
    probabilities, lows, highs = map(jnp.asarray, zip(*kinds.values(), strict=True))
    index = jnp.sum(draws[0] >= jnp.cumsum(probabilities)[:-1])
    strength = lows[index] + (highs[index] - lows[index]) * draws[1]
    sign, along_x = jnp.where(draws[2] < 0.5, 1.0, -1.0), draws[3] < 0.5

    def done(name: str, image: Image, strength: Number) -> Image:
        if name == "shear":
            x, y = (transform(f"shear_{axis}", image, sign * strength) for axis in "xy")
            return jnp.where(along_x, x, y)
        return transform(name, image, sign * jnp.floor(strength) if name == "rotate" else strength)

    return jax.lax.switch(index, [partial(done, name) for name in kinds], image, strength)


def transform(name: str, image: Image, strength: Number) -> Image:
    """Transform an image in a way of `PALETTES`, as Pillow does.

    ``strength`` is a factor, 1 of which changes nothing; an angle in degrees for ``'rotate'``, in
    radians for ``'shear_x'`` and ``'shear_y'``.
    """
    pixels = image.astype(jnp.int32)
    grey = pixels
    if image.shape[-1] == 3:
        grey = pixels @ jnp.asarray([19595, 38470, 7471])
        grey = ((grey + 0x8000) >> 16)[..., None]
    match name:
        case "saturation":
            return _blended(grey, pixels, strength)
        case "brightness":
            return _blended(jnp.zeros_like(pixels), pixels, strength)
        case "contrast":
            return _blended(jnp.floor(jnp.mean(grey.astype(jnp.float32)) + 0.5), pixels, strength)
        case "sharpness":
            return _blended(_smoothed(pixels), pixels, strength)
        case "autocontrast":
            low, high = jnp.min(pixels, axis=(0, 1)), jnp.max(pixels, axis=(0, 1))
            stretched = (pixels - low) * 255 // jnp.maximum(high - low, 1)
            return jnp.where(high > low, stretched, pixels).astype(jnp.uint8)
        case "equalize":
            return jax.vmap(_equalized, in_axes=-1, out_axes=-1)(pixels)
        case "rotate":
            angle = -jnp.deg2rad(strength)
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            return _warped(image, ((cos, sin), (-sin, cos)))
        case "shear_x":
            return _warped(image, ((1.0, jnp.tan(strength)), (0.0, 1.0)))
        case "shear_y":
            return _warped(image, ((1.0, 0.0), (jnp.tan(strength), 1.0)))
    raise ValueError(f"{name!r} is no transformation")


def _blended(other: Array, pixels: Array, factor: Number) -> Image:
    """Return ``other + factor (pixels - other)``, cut to what a pixel can be."""
    return jnp.clip(other + factor * (pixels - other), 0, 255).astype(jnp.uint8)


def _smoothed(pixels: Array) -> Array:
    """Return means of 3x3 pixels, of which the middle one counts five times; edges stay."""
    height, width, _ = pixels.shape
    inner = 4 * pixels[1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            inner += pixels[row : row + height - 2, column : column + width - 2]
    return pixels.at[1:-1, 1:-1].set((2 * inner + 13) // 26)


def _equalized(channel: Int[Array, "height width"]) -> UInt8[Array, "height width"]:
    """Spread a channel's intensities so that their cumulative counts are even."""
    counts = jnp.zeros(256, jnp.int32).at[channel].add(1)
    step = (channel.size - counts[jnp.max(channel)]) // 255
    below = jnp.cumsum(counts) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[channel], channel).astype(jnp.uint8)


def _warped(image: Image, matrix: tuple[tuple[Number | float, ...], ...]) -> Image:
    """Take every pixel from where the matrix sends its (x, y) about the centre; else black."""
    height, width, _ = image.shape
    y, x = jnp.arange(height)[:, None] + 0.5 - height / 2, jnp.arange(width) + 0.5 - width / 2
    (a, b), (c, d) = matrix
    column = jnp.floor(a * x + b * y + width / 2).astype(jnp.int32)
    row = jnp.floor(c * x + d * y + height / 2).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    taken = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], taken, 0)
