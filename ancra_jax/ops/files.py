"""Write files whole or not at all; read arrays, without executing anything, and JSON lines."""

import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from ancra_jax.errors import UsageError

PathLike = str | os.PathLike[str]

_DAMAGES = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


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
      UsageError: the file is missing or damaged, or lacks an array that is needed.
    """
    field = field or str(path)
    if not os.path.exists(path):
        raise UsageError(f"{field}: there is no such file")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a whole zip file")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except _DAMAGES as error:
        raise UsageError(f"{field}: is damaged or no .npz file: {error}") from error
    if missing := [name for name in needed if name not in arrays]:
        raise UsageError(
            f"{field}: lacks the array {' and '.join(map(repr, missing))}; it holds "
            f"{', '.join(map(repr, arrays)) or 'nothing'}"
        )
    return arrays


def read_json_lines(path: PathLike) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, without the unfinished last line of a killed run.

    A file that does not exist has none.
    """
    path = pathlib.Path(path)
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
