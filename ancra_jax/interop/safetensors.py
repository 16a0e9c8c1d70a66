"""Safetensors files: arrays by name and texts by name, without code and without the package.

A file is 8 bytes with the length of a JSON header, the header, and the bytes of all arrays.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from ancra_jax.errors import UsageError
from ancra_jax.ops.archives import unpacked_limit
from ancra_jax.ops.files import PathLike, parse_json, write_atomically

_MAX_HEADER = 16 << 20  # bytes
_TEXTS = "__metadata__"  # of the header
_DTYPES: dict[str, Any] = {
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    "BF16": jnp.bfloat16,
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
    "BOOL": "?",
}


def read(path: PathLike, field: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a file and the texts in its header; errors call the file ``field``.

    Floating-point arrays become float32.

    Raises:
      UsageError: the file is missing, of another kind, damaged, or holds other than dense arrays of
        floats and whole numbers.
    """
    try:
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        length = int.from_bytes(content[:8].tobytes(), "little")
        if not 0 < length <= min(len(content) - 8, _MAX_HEADER):
            raise ValueError(f"its header claims {length:,} bytes")
        header = parse_json(content[8 : 8 + length].tobytes())
        texts = header.pop(_TEXTS, {})
        arrays, end = {}, 8 + length
        for key, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if one["dtype"] not in _DTYPES:
                raise UsageError(
                    f"{field}: {key!r} is of dtype {one['dtype']!r}; allowed are "
                    f"{', '.join(_DTYPES)}"
                )
            dtype = np.dtype(_DTYPES[one["dtype"]])
            start, end = end, end + math.prod(one["shape"]) * dtype.itemsize
            place = [offset + 8 + length for offset in one["data_offsets"]]
            if place != [start, end] or end > len(content) or min(one["shape"], default=0) < 0:
                raise ValueError(f"{key!r} of shape {one['shape']} is not at {one['data_offsets']}")
            if end > unpacked_limit(path):
                raise ValueError(f"{key!r} is larger than what the file holds")
            array = content[start:end].view(dtype).reshape(one["shape"])
            is_float = jnp.issubdtype(dtype, jnp.floating)
            arrays[key] = array.astype(np.float32 if is_float else dtype)
        if end != len(content):
            raise ValueError(f"{len(content) - end} bytes belong to no array")
        return arrays, dict(texts)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"{field}: not a readable safetensors file ({type(error).__name__}: {error})"
        ) from error


def write(path: PathLike, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
    """Write float32 arrays, and texts into the header, atomically.

    Raises:
      UsageError: the file cannot be written.
    """
    header: dict[str, Any] = {_TEXTS: dict(texts)}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + 4 * array.size
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # so that arrays begin where a float may

    def write_parts(file: BinaryIO) -> None:
        file.write(len(head).to_bytes(8, "little") + head)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, "<f4").tobytes())

    try:
        write_atomically(Path(path), write_parts)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
