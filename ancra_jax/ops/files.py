"""Write files whole or not at all; read arrays, without executing anything, and JSON lines."""

import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from ancra_jax.errors import UsageError
from ancra_jax.ops.archives import open_zip, read_file

PathLike = str | os.PathLike[str]

_JSON = 16 << 20  # bytes of a JSON file
_DEPTH = 64  # of objects and lists in JSON
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def write_atomically(path: PathLike, data: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    ``data`` is the content, or a function that writes it to an open file.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        if callable(data):
            data(file)
        else:
            file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_arrays(path: PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a compressed .npz file, atomically."""
    write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def read_arrays(
    path: PathLike, needed: Sequence[str] = (), *, field: str = ""
) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz file by name; nothing in it is ever unpickled.

    Errors call the file ``field``, by default its path.

    Raises:
      UsageError: the file is missing or damaged, lacks an array that is needed, or takes more
        memory than `unpacked_limit` allows for its size.
    """
    field = field or str(path)
    if not os.path.exists(path):
        raise UsageError(f"{field}: there is no such file")
    arrays: dict[str, np.ndarray] = {}
    with open_zip(path, field) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            try:
                arrays[name] = _read_array(archive, info)
            except Exception as error:  # zipfile, zlib and NumPy each raise their own.
                raise UsageError(
                    f"{field}: {name!r} is damaged or no array: {str(error)[:300]}"
                ) from error
    if missing := [name for name in needed if name not in arrays]:
        raise UsageError(
            f"{field}: lacks the array {' and '.join(map(repr, missing))}; it holds "
            f"{', '.join(map(repr, arrays)) or 'nothing'}"
        )
    return arrays


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return an array whose header claims as many bytes as there are; else raise a ValueError."""
    with archive.open(info) as file:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        there = info.file_size - file.tell()
    size = dtype.itemsize
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled")
    if not size or min(shape, default=0) < 0 or math.prod(shape) * size != there:
        raise ValueError(f"its header claims {dtype} of shape {shape}, but there are {there} bytes")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_json(path: PathLike) -> dict[str, Any]:
    """Return the object in a JSON file of at most 16 MiB.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no JSON object, too large, or nested more than 64 deep.
    """
    content = parse_json(read_file(path, _JSON))
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def parse_json(text: bytes | str) -> Any:
    """Return the content of JSON; raise a ValueError if there is none or it is nested too deep."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level = [content]
    for _ in range(_DEPTH):
        groups = [one for one in level if isinstance(one, dict | list)]
        if not groups:
            return content
        level = [x for one in groups for x in (one.values() if isinstance(one, dict) else one)]
    raise ValueError(f"it is nested more than {_DEPTH} deep")


def read_json_lines(path: PathLike) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, without the unfinished last line of a killed run.

    A file that does not exist has none.
    """
    path = pathlib.Path(path)
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(parse_json(line))
        except ValueError:
            continue
    return records
