"""Files of runs: JSON lines, and what ``ancra_jax.ops.files`` has for arrays and atomic writes."""

import json
import pathlib
from typing import Any

from ancra_jax.ops.files import PathLike, read_arrays, write_arrays, write_atomically

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
