"""Write files whole or not at all; read arrays, without executing anything, and JSON lines."""

import contextlib
import json
import os
import pathlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from ancra_jax.errors import UsageError

PathLike = str | os.PathLike[str]

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what a killed `write_atomically` leaves
_DAMAGES = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def write_atomically(path: PathLike, data: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    ``data`` is the content, or a function that writes it to an open file.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it takes the room of what follows
        raise


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Let an error of the system, such as that of a full disk, name this file."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename = str(path)
        raise


def is_temporary(path: PathLike) -> bool:
    """Return whether a file has the name of one that `write_atomically` had not finished."""
    return _TEMPORARY.fullmatch(os.path.basename(path)) is not None


def remove_temporaries(directory: PathLike) -> None:
    """Remove what killed processes left unfinished in a directory that nothing else writes to."""
    for path in pathlib.Path(directory).rglob(".*.tmp"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def check_writable(directory: PathLike, field: str) -> None:
    """Create a directory if need be, and check that files can be written to it.

    Raises:
      UsageError: they cannot; the message begins with ``field``.
    """
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UsageError(f"{field}: cannot write to {directory}: {error.strerror}") from error


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


def read_json_lines(
    path: PathLike, keep: Callable[[dict[str, Any]], bool] = lambda record: True
) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file for which ``keep`` returns True.

    Damaged lines, such as the unfinished last one of a killed run, are left out; a file that does
    not exist has none.
    """
    return [record for _, record in _json_lines(path) if record is not None and keep(record)]


def append_json_line(path: PathLike, record: Mapping[str, Any]) -> None:
    """Append a record to a JSON-lines file, on a line of its own after an unfinished one too."""
    line = f"{json.dumps(record)}\n".encode()
    with naming(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)


def set_lines_aside(path: PathLike, keep: Callable[[dict[str, Any]], bool], what: str) -> None:
    """Leave in a JSON-lines file, if there is one, the records that ``keep`` returns True for.

    All other lines, which are ``what``, are appended to ``<path>.set_aside``; a line says so.
    """
    path = pathlib.Path(path)
    kept: list[bytes] = []
    others: list[bytes] = []
    for line, record in _json_lines(path):
        (kept if record is not None and keep(record) else others).append(line + b"\n")
    if others:
        target = path.with_name(f"{path.name}.set_aside")
        with open(target, "ab") as file:
            file.writelines(others)
            file.flush()
            os.fsync(file.fileno())
        write_atomically(path, b"".join(kept))
        print(
            f"warning: {path}: {len(others)} of {len(others) + len(kept)} lines, {what}, are set "
            f"aside in {target.name}",
            flush=True,
        )


def _json_lines(path: PathLike) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield the lines of a file with their records; None for a line that holds no JSON object."""
    lines = pathlib.Path(path).read_bytes().splitlines() if os.path.exists(path) else []
    for line in filter(bytes.strip, lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield line, record if isinstance(record, dict) else None
