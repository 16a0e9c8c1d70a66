"""Encoded images to one uint8 array, in parallel."""

import contextlib
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ancra_jax.errors import UsageError

_CHUNK = 256  # images that a thread decodes before it takes the next
# Pillow would give what looks like PostScript to Ghostscript, whatever the file is called.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_MAX_PIXELS = 32 << 20  # of an image that is made smaller
_DECODED = 256 << 20  # bytes that all images may take whatever their files' sizes, and ...
_RATIO = 128  # ... by their files' sizes, which photographs and drawings do not come near to
_MAX_SIDE = 2048  # of one that is not
_ALONE = 4 << 20  # pixels of images that take so much memory that they are decoded one at a time
_alone = threading.Lock()


def decode_images(
    count: int,
    read: Callable[[int], bytes],
    describe: Callable[[int], str],
    image_size: int | None = None,
    largest: int = _MAX_SIDE,
    encoded_bytes: int | None = None,
) -> tuple[UInt8[np.ndarray, "count height width 3"], bool]:
    """Decode images to RGB, several at a time (decoders release Python's lock).

    ``read(i)`` gives the encoded bytes of image i, in one of several threads; ``describe(i)`` says
    in error messages where it comes from. An image is cut to a square around its centre and
    resampled to ``image_size`` pixels; if that is None, all must have the size of the first, of at
    most ``largest`` pixels a side. ``encoded_bytes`` of all images together bound what they may
    take in memory.

    Returns:
      The images, and whether all of them are grey (their channels are then equal).

    Raises:
      UsageError: an image cannot be decoded, has more than 8 bits a channel or too many pixels, or
        differs in size.
    """

    size = (image_size, image_size) if image_size else None

    def decode(i: int) -> tuple[UInt8[np.ndarray, "height width 3"], bool]:
        try:
            return _decode(read(i), size, largest)
        except UsageError:
            raise
        except Exception as error:  # Decoders raise whatever they like.
            raise UsageError(f"{describe(i)} is not an image that can be used: {error}") from error

    first, _ = decode(0)
    too_large = (
        image_size is None
        and encoded_bytes is not None
        and first.nbytes * count > max(_DECODED, _RATIO * encoded_bytes)
    )
    try:
        if too_large:
            raise MemoryError(f"more than {_RATIO} times the bytes of its files; set image_size")
        images = np.empty((count, *first.shape), np.uint8)
    except MemoryError as error:
        raise UsageError(
            f"{describe(0)} and the other images, {count} in all, take "
            f"{count * first.nbytes:,} bytes of memory: {error}"
        ) from error

    def decode_chunk(start: int) -> bool:
        all_grey = True
        for i in range(start, min(start + _CHUNK, count)):
            image, is_grey = decode(i)
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


def decode_to(
    encoded: bytes, shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "height width channels"]:
    """Decode an image as `decode_images` does, and give it a shape as `fit` does.

    Raises:
      OSError, ValueError: it cannot be decoded, has more than 8 bits a channel or too many pixels.
    """
    rgb, _ = _decode(encoded, (shape[1], shape[0]), _MAX_SIDE)
    return fit(Image.fromarray(rgb), shape)


def fit(
    image: Image.Image, shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "height width channels"]:
    """Cut an image to the largest centred part of a shape's proportions, and resample that.

    An image of that size stays as it is. Three channels are RGB, one is grey.
    """
    height, width, channels = shape
    rgb = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb.convert("L"))[..., None] if channels == 1 else np.asarray(rgb)


def open_image(encoded: bytes) -> ImageFile.ImageFile:
    """Open an image of the formats that are allowed; raise an OSError or ValueError if damaged."""
    try:
        return Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except UnidentifiedImageError as error:  # whose text names no file
        raise ValueError(f"cannot identify it; allowed are {', '.join(_FORMATS)}") from error
    except SyntaxError as error:  # which is what Pillow says of some damaged files
        raise ValueError(str(error)) from error


def _decode(
    encoded: bytes, size: tuple[int, int] | None, largest: int
) -> tuple[UInt8[np.ndarray, "height width 3"], bool]:
    """Return an image as RGB, and whether it is grey; raise a ValueError if it is refused."""
    with open_image(encoded) as image:
        pixels = image.width * image.height
        if size is None and max(image.size) > largest:
            raise ValueError(
                f"it has {image.width}x{image.height} pixels; at most {largest}x{largest} are "
                "allowed (the data set 'folder' makes images smaller with image_size)"
            )
        if pixels > _MAX_PIXELS:
            raise ValueError(f"it has {pixels:,} pixels; at most {_MAX_PIXELS:,} are allowed")
        if _bits(image, encoded) > 8:
            raise ValueError("it has more than 8 bits a channel; save it with 8")
        with _alone if pixels > _ALONE else contextlib.nullcontext():
            mode = image.mode
            rgb = image.convert("RGB")
            if size is not None:
                rgb = ImageOps.fit(rgb, size, Image.Resampling.BICUBIC)
    return np.asarray(rgb), mode in ("1", "L", "LA")


def _bits(image: ImageFile.ImageFile, encoded: bytes) -> int:
    """Return the bits of a channel; Pillow cuts those of colour images to 8 without a word."""
    if image.format == "PNG":
        return encoded[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(258, (1,)))
    if image.mode.startswith(("I", "F")):
        return 16
    arguments = image.tile[0].args if image.format == "PPM" else None
    # With the largest value, where that is not 255.
    return arguments[1].bit_length() if isinstance(arguments, tuple) else 8
