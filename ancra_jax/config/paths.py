"""The one reading of a path that a user gives, as a flag, a setting or an argument."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from ancra_jax.errors import UsageError
from ancra_jax.urls import check_reachable, is_url

_REMOTE = re.compile(r"[A-Za-z][\w+.:-]*:/")  # gs://bucket, a::gs://bucket, C:/


def as_list(value: Any, field: str) -> list[Any]:
    """Return several things as a list, and a text or a path as the one thing that it is.

    Raises:
      UsageError: it is neither; ``field`` is what the error calls it.
    """
    try:
        return [value] if isinstance(value, str | os.PathLike) else list(value)
    except TypeError as error:
        raise UsageError(f"{field}={value!r}: must be a list") from error


def path_text(value: str | os.PathLike[str], field: str, *, remote: bool = False) -> str:
    """Return a path with ``~`` and ``~user`` expanded; ``field`` is what errors call it.

    ``file:///a/b`` is ``/a/b``.

    Raises:
      UsageError: it is no text that a file system and a printed line can hold, there is no such
        user, or, unless ``remote``, it is the address of something that is not on this machine.
    """
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{field}={value!r}: must be a path")
    text = os.fspath(value)
    given = f"{field}={text!r}"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise UsageError(f"{given}: must not hold line breaks or other control characters")
    if text != text.strip():
        raise UsageError(f"{given}: must not begin or end with a space")
    if text.startswith("file:///"):
        return text.removeprefix("file://")
    if _REMOTE.match(text):
        if not remote:
            raise UsageError(
                f"{given}: must be on this machine, not an address such as gs://; mount the "
                "bucket, or copy what is in it"
            )
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UsageError(f"{given}: there is no user {expanded.partition('/')[0][1:]!r}")
    return expanded


def local_path(value: str | os.PathLike[str], field: str, *, directory: bool = True) -> str:
    """Return a path as `path_text` does, after a look at what is there; nothing need be.

    Raises:
      UsageError: as `path_text`; or the path is empty, too long or not accessible, leads through a
        link to nothing or, where a ``directory`` is meant, through a file.
    """
    text = path_text(value, field)
    if not text:
        raise UsageError(
            f"{field} is missing: it must name a {'directory' if directory else 'file'}"
        )
    path = Path(text)
    try:
        for part in (path, *path.parents):
            if part.is_symlink() and not part.exists():
                raise UsageError(
                    f"{field}={text}: {part} is a link to {os.readlink(part)}, which is not there"
                )
            if part.is_file() and (directory or part != path):
                raise UsageError(f"{field}={text}: {part} is a file, not a directory")
    except OSError as error:
        raise UsageError(f"{field}={text}: {error.strerror}") from error
    return text


def directory_path(value: str | os.PathLike[str], field: str) -> str:
    """Return a directory as `local_path` does, or an address such as ``gs://bucket/run``.

    Raises:
      UsageError: as `local_path`; or nothing that is installed reads such addresses.
    """
    text = path_text(value, field, remote=True)
    if not is_url(text):
        return local_path(text, field)
    try:
        check_reachable(text)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{field}={text}: cannot be reached: {error}") from error
    return text


def listable_path(value: str | os.PathLike[str], field: str) -> str:
    """Return a directory to be made, as `directory_path` does, that a list of them can hold.

    Raises:
      UsageError: as `directory_path`; or it holds a comma or begins with a quotation mark.
    """
    text = directory_path(value, field)
    if "," in text or text.startswith('"'):
        raise UsageError(
            f"{field}={text}: must not hold a comma or begin with a quotation mark, since "
            "--workdirs of the report is split at commas"
        )
    return text


def path_list(paths: list[str] | tuple[str, ...]) -> str:
    """Return paths as one flag takes them, ``A,B``; one that holds a comma is quoted."""
    quoted = (
        f'"{path.replace(chr(34), chr(34) * 2)}"' if "," in path or path[:1] == '"' else path
        for path in paths
    )
    return ",".join(quoted)
