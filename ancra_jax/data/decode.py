"""Encoded images to one uint8 array, in parallel."""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ancra_jax.errors import UsageError

_CHUNK = 256  # images that a thread decodes before it takes the next


def decode_images(
    count: int,
    read: Callable[[int], bytes],
    describe: Callable[[int], str],
    image_size: int | None = None,
) -> tuple[UInt8[np.ndarray, "count height width 3"], bool]:
    """Decode images to RGB, several at a time (decoders release Python's lock).

    ``read(i)`` gives the encoded bytes of image i, in one of several threads; ``describe(i)`` says
    in error messages where it comes from. An image is cut to a square around its centre and
    resampled to ``image_size`` pixels; if that is None, all must have the size of the first.

    Returns:
      The images, and whether all of them are grey (their channels are then equal).

    Raises:
      UsageError: an image cannot be decoded, has more than 8 bits a channel, or differs in size.
    """
    first, _ = _decode(read(0), describe(0), image_size)
    images = np.empty((count, *first.shape), np.uint8)

    def decode_chunk(start: int) -> bool:
        all_grey = True
        for i in range(start, min(start + _CHUNK, count)):
            image, is_grey = _decode(read(i), describe(i), image_size)
            if image.shape != first.shape:
                (height, width, _), (first_height, first_width, _) = image.shape, first.shape
                raise UsageError(
                    f"{describe(i)} has {width}x{height} pixels but {describe(0)} has "
                    f"{first_width}x{first_height}; make them equal (the data set 'folder' does "
                    "with image_size)"
                )
            images[i] = image
            all_grey &= is_grey
        return all_grey

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        grey = list(pool.map(decode_chunk, range(0, count, _CHUNK)))
    finally:
        pool.shutdown(cancel_futures=True)
    return images, all(grey)


def _decode(
    encoded: bytes, name: str, image_size: int | None
) -> tuple[UInt8[np.ndarray, "height width 3"], bool]:
    """Return an image as RGB, and whether it is grey."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            mode = image.mode
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{name} is not an image that can be decoded: {error}") from error
    if mode.startswith(("I", "F")):
        raise UsageError(f"{name} has more than 8 bits a channel; save it with 8")
    if image_size is not None:
        rgb = ImageOps.fit(rgb, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(rgb), mode in ("1", "L", "LA")
