"""Encoded images to one uint8 array, in parallel."""

import contextlib
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ancra_jax.errors import UsageError

Resize = Callable[[Image.Image], Image.Image]
"""From an RGB image to one of the size that all get."""

_CHUNK = 256  # images that a thread decodes before it takes the next
# Pillow would give what looks like PostScript to Ghostscript, whatever the file is called.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_MAX_PIXELS = 32 << 20  # of an image that is resized
_MAX_SIDE = 2048  # of an image that keeps its size
# All images together may take so many bytes of memory, or so many times the bytes of their files
# if that is more; photographs and drawings stay far below it.
_DECODED, _RATIO = 256 << 20, 128
_HEADER = 64  # bytes of a file that tell the depth of a PNG image
_NAMED = 10  # images that an error names, of all that cannot be decoded
_ALONE = 4 << 20  # pixels of images that take so much memory that they are decoded one at a time
_alone = threading.Lock()


def decode_images(
    count: int,
    read: Callable[[int], bytes],
    describe: Callable[[int], str],
    image_size: int | None = None,
    largest: int = _MAX_SIDE,
    encoded_bytes: int | None = None,
    resize: Resize | None = None,
) -> tuple[UInt8[np.ndarray, "count height width 3"], bool]:
    """Decode images to RGB, several at a time (decoders release Python's lock).

    ``read(i)`` gives the encoded bytes of image i, in one of several threads; ``describe(i)`` says
    in error messages where it comes from. An image is cut to a square around its centre and
    resampled to ``image_size`` pixels, or becomes what ``resize`` makes of it; without both, all
    must have the size of the first, of at most ``largest`` pixels a side. ``encoded_bytes``, the
    size of all files together, limits the memory that the images may take.

    Returns:
      The images, and whether all of them are grey (their channels are then equal).

    Raises:
      UsageError: an image cannot be decoded, has more than 8 bits a channel or too many pixels, or
        differs in size; all that cannot be decoded are named, as `shortened` has room.
    """
    if not count:
        raise UsageError("images: there are none to decode")
    if image_size:
        resize = _fitting(image_size, image_size)
    damaged: dict[int, str] = {}  # what is wrong with which image

    def decode(i: int) -> tuple[UInt8[np.ndarray, "height width 3"], bool] | None:
        try:
            return _decode(read(i), resize, largest)
        except UsageError as error:
            damaged[i] = str(error)
        except Exception as error:  # Decoders raise whatever they like.
            damaged[i] = f"{describe(i)} is not an image that can be used: {error}"
        return None

    def decode_chunk(start: int) -> bool:
        all_grey = True
        for i in range(start, min(start + _CHUNK, count)):
            if decoded := decode(i):
                image, is_grey = decoded
                if image.shape != shape:
                    raise UsageError(
                        f"{describe(i)} has {_size(image.shape)} pixels but {describe(usable)} has "
                        f"{_size(shape)}; make them equal (the data set 'folder' does with "
                        "image_size)"
                    )
                images[i] = image
                all_grey &= is_grey
        return all_grey

    usable, first = next(((i, found) for i in range(count) if (found := decode(i))), (0, None))
    if first is None:
        raise UsageError(*shortened([damaged[i] for i in sorted(damaged)]))
    shape = first[0].shape
    most = None if resize or not encoded_bytes else max(_DECODED, _RATIO * encoded_bytes)
    try:
        if most and first[0].nbytes * count > most:
            raise MemoryError(f"more than {_RATIO} times the bytes of its files; set image_size")
        images = np.empty((count, *shape), np.uint8)
    except MemoryError as error:
        raise UsageError(
            f"{describe(usable)} and the other images, {count} in all, take "
            f"{count * first[0].nbytes:,} bytes of memory: {error}"
        ) from error
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        grey = list(pool.map(decode_chunk, range(0, count, _CHUNK)))
    finally:
        pool.shutdown(cancel_futures=True)
    if damaged:
        raise UsageError(*shortened([damaged[i] for i in sorted(damaged)]))
    return images, all(grey)


def decode_to(
    encoded: bytes, shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "height width channels"]:
    """Decode an image as `decode_images` does, and give it a shape as `fit` does.

    Raises:
      OSError, ValueError: it cannot be decoded, has more than 8 bits a channel or too many pixels.
    """
    rgb, _ = _decode(encoded, _fitting(shape[1], shape[0]), _MAX_SIDE)
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


def shortened(messages: list[str]) -> list[str]:
    """Return the first of many messages, and how many more there are."""
    more = len(messages) - _NAMED
    return [*messages[:_NAMED], f"and {more} more like these"] if more > 0 else messages


def measure(path: Path) -> tuple[int, int]:
    """Return the width and the height of an image, of which only the header is read.

    Raises:
      UsageError: `decode_images` would refuse it for what the header says.
    """
    try:
        with path.open("rb") as file, open_image(file) as image:
            with path.open("rb") as again:
                _check_header(image, again.read(_HEADER))
            return image.size
    except Exception as error:  # Decoders raise whatever they like.
        raise UsageError(f"{path} is not an image that can be used: {error}") from error


def open_image(file: io.BufferedIOBase) -> ImageFile.ImageFile:
    """Open an image of the formats that are allowed; raise an OSError or ValueError if damaged."""
    try:
        return Image.open(file, formats=_FORMATS)  # type: ignore[arg-type]
    except UnidentifiedImageError as error:  # whose text names no file
        raise ValueError(f"cannot identify it; allowed are {', '.join(_FORMATS)}") from error
    except SyntaxError as error:  # which is what Pillow says of some damaged files
        raise ValueError(str(error)) from error


def _fitting(width: int, height: int) -> Resize:
    return lambda image: ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def _decode(
    encoded: bytes, resize: Resize | None, largest: int
) -> tuple[UInt8[np.ndarray, "height width 3"], bool]:
    """Return an image as RGB, and whether it is grey; raise a ValueError if it is refused."""
    with open_image(io.BytesIO(encoded)) as image:
        if resize is None and max(image.size) > largest:
            raise ValueError(
                f"it has {image.width}x{image.height} pixels; at most {largest}x{largest} are "
                "allowed (the data set 'folder' makes images smaller with image_size)"
            )
        _check_header(image, encoded)
        with _alone if image.width * image.height > _ALONE else contextlib.nullcontext():
            mode = image.mode
            rgb = image.convert("RGB")
            if resize is not None:
                rgb = resize(rgb)
    return np.asarray(rgb), mode in ("1", "L", "LA")


def _check_header(image: ImageFile.ImageFile, encoded: bytes) -> None:
    """Raise a ValueError for an image of too many pixels or too many bits a channel."""
    pixels = image.width * image.height
    if pixels > _MAX_PIXELS:
        raise ValueError(f"it has {pixels:,} pixels; at most {_MAX_PIXELS:,} are allowed")
    if _bits(image, encoded) > 8:
        raise ValueError("it has more than 8 bits a channel; save it with 8")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


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
