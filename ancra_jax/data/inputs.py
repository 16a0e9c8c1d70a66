"""Images in any usual form, as a network takes them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from ancra_jax.data.decode import decode_to, fit
from ancra_jax.errors import UsageError
from ancra_jax.ops.archives import read_file

Shape = tuple[int, int, int]
_CHANNELS = (1, 3, 4)  # of an array: grey, RGB, RGB with transparency, which is dropped
_ROUNDING = 1e-6  # by which floats may leave [0, 1]


def as_batch(images: Any, shape: Shape) -> Float[np.ndarray, "batch height width channels"]:
    """Return images as float32 in [0, 1].

    Args:
      images: one image or several: paths, PIL images, arrays [height, width] or [height, width,
        channels], all in a list or tuple; or one array [batch, height, width, channels]. Arrays
        are uint8, or floating-point with pixels in [0, 1].
      shape: height, width and channels that all get; images of another size are cut to the largest
        centred part of its proportions and resampled, as in training.

    Raises:
      UsageError: an image cannot be read, or is none; the message says which.
    """
    is_batch = isinstance(images, list | tuple) or len(getattr(images, "shape", ())) == 4
    several: Sequence[Any] = images if is_batch else [images]
    if not len(several):
        raise UsageError("images: there are none")
    return np.stack([as_image(one, shape, f"image {i}") for i, one in enumerate(several)])


def as_image(
    image: Any, shape: Shape, name: str = "the image"
) -> Float[np.ndarray, "height width channels"]:
    """Return one image as `as_batch` does; errors call it ``name``, or by its path."""
    if isinstance(image, str | os.PathLike):
        pixels = _read(Path(image), shape)
    elif isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise UsageError(f"{name} has more than 8 bits a channel (mode {image.mode})")
        pixels = _fit(image, shape, name)
    else:
        array = _as_pixels(image, name)
        if array.shape == shape and array.dtype != np.uint8:
            return array
        if array.dtype != np.uint8:
            array = np.rint(array * 255).astype(np.uint8)
        pixels = array
        if array.shape != shape:
            if array.shape[2] not in _CHANNELS:
                raise UsageError(
                    f"{name} has shape {array.shape}: must be [height, width, channels] with 1, 3 "
                    "or 4 channels"
                )
            is_grey = array.shape[2] == 1
            pixels = _fit(Image.fromarray(array[..., 0] if is_grey else array), shape, name)
    return np.divide(pixels, np.float32(255), dtype=np.float32)


def _read(path: Path, shape: Shape) -> np.ndarray:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise UsageError(f"{path} is {what}; paths of images are needed")
    _check_channels(shape, str(path))
    try:
        return decode_to(read_file(path), shape)
    except Exception as error:  # decoders raise whatever they like
        raise UsageError(f"{path} is not an image that can be used: {error}") from error


def _fit(image: Image.Image, shape: Shape, name: str) -> np.ndarray:
    _check_channels(shape, name)
    if 0 in image.size:
        raise UsageError(f"{name} has {image.width}x{image.height} pixels: there must be some")
    try:
        return fit(image, shape)
    except Exception as error:  # decoders raise whatever they like
        raise UsageError(f"{name} is not an image that can be used: {error}") from error


def _check_channels(shape: Shape, name: str) -> None:
    if shape[2] not in (1, 3):
        raise UsageError(
            f"{name}: the network takes arrays of shape {shape} alone, neither grey nor RGB"
        )


def _as_pixels(image: Any, name: str) -> np.ndarray:
    """Return an array [height, width, channels], uint8, or float32 in [0, 1]."""
    try:
        array = np.asarray(image)
    except Exception as error:  # whatever somebody's own ``__array__`` raises
        raise UsageError(f"{name} is no image: {type(image).__name__} ({error})") from error
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise UsageError(
            f"{name} is a {type(image).__name__} of shape {array.shape}: must be a path, a PIL "
            "image, or an array [height, width, channels]"
        )
    if array.dtype == np.uint8:
        return array
    if not (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
        raise UsageError(f"{name} has dtype {array.dtype}: must be uint8, or floats in [0, 1]")
    array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN fails both
        raise UsageError(f"{name} has pixels from {low:g} to {high:g}: floats must be in [0, 1]")
    return array.clip(0, 1)
