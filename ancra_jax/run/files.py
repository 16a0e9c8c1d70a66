"""Files that are written whole or not at all, and read without executing anything in them."""

import io
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ancra_jax.errors import UsageError


def write_atomically(path: str | os.PathLike, data: bytes | str):
    """Writes a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path = pathlib.Path(path)
    data = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; an unfinished last line, of a killed run, is left out."""
    path = pathlib.Path(path)
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def read_arrays(path: pathlib.Path, needed: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads an array file; nothing in it is ever unpickled.

    Args:
      path: of the file.
      needed: names of arrays that have to be there.

    Raises:
      UsageError: it is missing or damaged, or has not all that is needed.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UsageError(f"{path}: is missing, but what it belongs to is there") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: is damaged: {error!r}") from error
    if missing := [name for name in needed if name not in arrays]:
        raise UsageError(f"{path}: is damaged: it holds no {' and no '.join(missing)}")
    return arrays


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]):
    """Writes an array file atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())
