"""Write files whole or not at all; read arrays, without executing anything, and JSON lines."""

import contextlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from ancra_jax.errors import UsageError
from ancra_jax.ops.archives import open_zip, read_file
from ancra_jax.urls import AnyPath, AnyPathLike, UrlPath, as_path

PathLike = str | os.PathLike[str]

_JSON = 16 << 20  # bytes of a JSON file
_DEPTH = 64  # of objects and lists in JSON
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what a killed `write_atomically` leaves


def write_atomically(path: AnyPathLike, data: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    ``data`` is the content, or a function that writes it to an open file.
    """
    path = as_path(path)
    if isinstance(path, UrlPath):  # an object is written whole
        buffer = io.BytesIO()
        _write(buffer, data)
        path.write_bytes(buffer.getvalue())
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            _write(file, data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it takes the room of what follows
        raise


def _write(file: Any, data: bytes | str | Callable[[BinaryIO], object]) -> None:
    if callable(data):
        data(file)
    else:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def naming(path: AnyPathLike) -> Iterator[None]:
    """Let an error of the system, such as that of a full disk, name this file."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename = str(path)
        raise


def is_temporary(path: AnyPathLike) -> bool:
    """Return whether a file has the name of one that `write_atomically` had not finished."""
    return _TEMPORARY.fullmatch(as_path(path).name) is not None


def remove_temporaries(directory: AnyPathLike) -> None:
    """Remove what killed processes left unfinished in a directory that nothing else writes to."""
    place = as_path(directory)
    for path in () if isinstance(place, UrlPath) else place.rglob(".*.tmp"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def remove_tree(directory: AnyPathLike) -> None:
    """Remove a directory and all that is in it, as far as that can be done."""
    path = as_path(directory)
    if isinstance(path, UrlPath):
        path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def check_writable(directory: AnyPathLike, field: str) -> None:
    """Create a directory if need be, and check that files can be written to it.

    Raises:
      UsageError: they cannot; the message begins with ``field``.
    """
    path = as_path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if isinstance(path, UrlPath):
            (path / ".probe").write_bytes(b"")
            (path / ".probe").unlink()
        else:
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        raise UsageError(f"{field}: cannot write to {directory}: {error.strerror}") from error


def write_arrays(path: AnyPathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a compressed .npz file, atomically."""
    write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def read_arrays(
    path: AnyPathLike, needed: Sequence[str] = (), *, field: str = ""
) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz file by name; nothing in it is ever unpickled.

    Errors call the file ``field``, by default its path.

    Raises:
      UsageError: the file is missing or damaged, lacks an array that is needed, or takes more
        memory than `unpacked_limit` allows for its size.
    """
    field = field or str(path)
    if not as_path(path).exists():
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


def map_array(
    path: PathLike, start: int = 0, size: int | None = None, *, field: str = ""
) -> np.ndarray:
    """Return an array in .npy format, mapped into memory.

    It takes ``size`` bytes of a file from byte ``start``; None is all of the file.

    Raises:
      UsageError: it is damaged or holds Python objects; the message begins with ``field``.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            there = os.path.getsize(path) - start if size is None else size
            shape, by_columns, dtype = _read_header(file, start + there)
            return np.memmap(path, dtype, "r", file.tell(), shape, "F" if by_columns else "C")
    except Exception as error:  # NumPy and the system each raise their own.
        message = f"{field or path}: is damaged or no array: {str(error)[:300]}"
        raise UsageError(message) from error


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return an array of an archive; raise a ValueError if it is none."""
    with archive.open(info) as file:
        _read_header(file, info.file_size)
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_header(file: Any, end: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether it is by columns, and dtype of an array that ends at byte ``end``.

    Raises:
      ValueError: it holds Python objects, or its header claims other bytes than there are.
    """
    shape, by_columns, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    there = end - file.tell()
    size = dtype.itemsize
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled")
    if not size or min(shape, default=0) < 0 or math.prod(shape) * size != there:
        raise ValueError(f"its header claims {dtype} of shape {shape}, but there are {there} bytes")
    return shape, by_columns, dtype


def read_json(path: AnyPathLike) -> dict[str, Any]:
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


def read_json_lines(
    path: AnyPathLike, keep: Callable[[dict[str, Any]], bool] = lambda record: True
) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file for which ``keep`` returns True.

    Damaged lines, such as the unfinished last one of a killed run, are left out; a file that does
    not exist has none.
    """
    return [record for _, record in _json_lines(path) if record is not None and keep(record)]


def append_json_line(path: AnyPathLike, record: Mapping[str, Any]) -> None:
    """Append a record to a JSON-lines file, on a line of its own after an unfinished one too."""
    line = f"{json.dumps(record)}\n".encode()
    path = as_path(path)
    if isinstance(path, UrlPath):
        append(path, line)
        return
    with naming(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)


def append(path: AnyPathLike, contents: bytes) -> None:
    """Append to a file in one piece; an object, which cannot grow, is written again."""
    path = as_path(path)
    if isinstance(path, UrlPath):
        path.write_bytes(_contents(path) + contents)
        return
    with path.open("ab", buffering=0) as file:
        file.write(contents)
        os.fsync(file.fileno())


def set_lines_aside(path: AnyPathLike, keep: Callable[[dict[str, Any]], bool], what: str) -> None:
    """Leave in a JSON-lines file, if there is one, the records that ``keep`` returns True for.

    All other lines, which are ``what``, are appended to ``<path>.set_aside``; a line says so.
    """
    path = as_path(path)
    kept: list[bytes] = []
    others: list[bytes] = []
    for line, record in _json_lines(path):
        (kept if record is not None and keep(record) else others).append(line + b"\n")
    if others:
        target = path.with_name(f"{path.name}.set_aside")
        append(target, b"".join(others))
        write_atomically(path, b"".join(kept))
        print(
            f"warning: {path}: {len(others)} of {len(others) + len(kept)} lines, {what}, are set "
            f"aside in {target.name}",
            flush=True,
        )


def _contents(path: AnyPath) -> bytes:
    """Return the contents of a file; none if it is not there."""
    return path.read_bytes() if path.exists() else b""


def _json_lines(path: AnyPathLike) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield the lines of a file with their records; None for a line that holds no JSON object."""
    for line in filter(bytes.strip, _contents(as_path(path)).splitlines()):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        yield line, record if isinstance(record, dict) else None
