"""Files of runs: JSON lines and arrays; see ``ancra_jax.ops.files`` for how they are written."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ancra_jax.errors import UsageError
from ancra_jax.ops import files
from ancra_jax.ops.files import PathLike, write_arrays, write_atomically

__all__ = ["read_arrays", "read_json_lines", "write_arrays", "write_atomically"]


def read_json_lines(path: PathLike) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, without the unfinished last line of a killed run."""
    path = pathlib.Path(path)
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def read_arrays(path: PathLike, needed: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of a file, as ``ancra_jax.ops.files.read_arrays`` does.

    Raises:
      UsageError: it is missing or damaged, or lacks an array that is needed.
    """
    try:
        return files.read_arrays(path, needed)
    except ValueError as error:
        raise UsageError(str(error)) from error
