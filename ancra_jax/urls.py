"""Files at addresses such as ``gs://bucket/run``, with the methods of a path.

An address is never a path of this machine: what is there is read and written as whole objects by
fsspec (`pip install gcsfs` for gs://, s3fs for s3://, ...; ``memory://`` and others come with it),
or by the class that somebody registered for such addresses with ``etils.epath``.
"""

import contextlib
import errno
import fnmatch
import io
import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_URL = re.compile(r"([A-Za-z][\w+.-]+)://")
# In object stores a folder is a part of a name; making one there would make the bucket.
_NO_FOLDERS = {"abfs", "adl", "az", "gcs", "gs", "hf", "memory", "oss", "s3", "s3a", "tos"}


def is_url(text: str) -> bool:
    """Return whether a text is an address, ``gs://bucket/run``; ``C:/`` is none."""
    return _URL.match(text) is not None


@dataclass(frozen=True, order=True)
class UrlPath:
    """An address with the methods of ``pathlib.Path`` that hold for objects.

    It has no ``__fspath__``, so that functions for files of this machine refuse it. An object is
    written whole: readers see the old one or the new one. Errors are ``OSError``.
    """

    url: str  # without a / at its end

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "UrlPath":
        return UrlPath(f"{self.url}/{name}".rstrip("/"))

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its last ending."""
        return pathlib.PurePosixPath(self.name).stem

    @property
    def parent(self) -> "UrlPath":
        """The address without its last part."""
        return UrlPath(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> "UrlPath":
        """Return the address of another name beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "UrlPath":
        """Return the address with another ending."""
        return self.with_name(self.stem + suffix)

    def absolute(self) -> "UrlPath":
        """Return the address itself."""
        return self

    resolve = absolute

    def exists(self) -> bool:
        """Return whether there is an object, or objects below the address."""
        with self._store() as (store, path):
            return bool(store.exists(path))

    def is_dir(self) -> bool:
        """Return whether there are objects below the address."""
        with self._store() as (store, path):
            return bool(store.isdir(path))

    def is_file(self) -> bool:
        """Return whether there is an object."""
        return self.exists() and not self.is_dir()

    def iterdir(self) -> Iterator["UrlPath"]:
        """Yield what is directly below the address."""
        with self._store() as (store, path):
            found = {name.rstrip("/") for name in store.ls(path, detail=False)}
        # An object store may list a folder as an object in itself.
        yield from (self / name.rpartition("/")[2] for name in sorted(found - {path.rstrip("/")}))

    def glob(self, pattern: str) -> Iterator["UrlPath"]:
        """Yield what is directly below the address and has such a name; nothing if nothing is."""
        if self.is_dir():
            yield from (one for one in self.iterdir() if fnmatch.fnmatchcase(one.name, pattern))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder, where the store has any."""
        with self._store() as (store, path):
            if self.url.partition("://")[0] not in _NO_FOLDERS:
                store.makedirs(path, exist_ok=True)

    def read_bytes(self) -> bytes:
        """Return the object's contents."""
        with self._store() as (store, path):
            return bytes(store.cat_file(path))

    def read_text(self) -> str:
        """Return the object's contents, which are UTF-8."""
        return self.read_bytes().decode()

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Open the object's contents, read whole, as a binary file."""
        if mode != "rb":
            raise ValueError(f"mode={mode!r}: objects are opened to be read, 'rb'")
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, contents: bytes) -> None:
        """Write the object, whole."""
        with self._store() as (store, path):
            store.pipe_file(path, contents)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        with self._store() as (store, path):
            if not missing_ok or store.exists(path):
                store.rm(path)

    def rmtree(self) -> None:
        """Remove all that is below the address, if anything is."""
        with self._store() as (store, path):
            if store.exists(path):
                store.rm(path, recursive=True)

    @contextlib.contextmanager
    def _store(self) -> Iterator[tuple[Any, str]]:
        """Give the file system, and the path there; each library's errors become ``OSError``."""
        try:
            store, path = _find_store(self.url)
            # What other machines wrote is to be seen.
            store.invalidate_cache()
            yield store, path
        except ImportError:
            raise
        except Exception as error:
            if (isinstance(error, OSError) and error.strerror) or type(error) is FileNotFoundError:
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise OSError(errno.EIO, reason, self.url) from error


AnyPath = pathlib.Path | UrlPath
AnyPathLike = str | os.PathLike[str] | UrlPath


def as_path(path: AnyPathLike) -> AnyPath:
    """Return a path on this machine, or a `UrlPath`, which has what is used here of one."""
    if isinstance(path, UrlPath):
        return path
    text = os.fspath(path)
    return UrlPath(text.rstrip("/")) if is_url(text) else pathlib.Path(path)


def _find_store(url: str) -> tuple[Any, str]:
    """Return what reads and writes at an address, as fsspec's file systems do, and the path there.

    Raises:
      ValueError: nothing is known for such addresses.
      ImportError: the package for them is not installed.
    """
    with contextlib.suppress(ModuleNotFoundError, KeyError):
        from etils import epath

        path = epath.Path(url)
        if not type(path).__module__.startswith("etils."):
            return _Registered(type(path)), url
    import fsspec

    found: tuple[Any, str] = fsspec.url_to_fs(url)
    return found


def check_reachable(url: str) -> None:
    """Raise a ValueError or an ImportError that says why such addresses cannot be read."""
    _find_store(url)


class _Registered:
    """A class that was registered with ``etils.epath``, with the calls of fsspec used above."""

    def __init__(self, path: Any):
        self._path = path

    def invalidate_cache(self) -> None:
        """Do nothing: such a class keeps no list."""

    def exists(self, url: str) -> bool:
        return bool(self._path(url).exists())

    def isdir(self, url: str) -> bool:
        return bool(self._path(url).is_dir())

    def ls(self, url: str, detail: bool) -> list[str]:
        return [str(found) for found in self._path(url).iterdir()]

    def makedirs(self, url: str, exist_ok: bool) -> None:
        self._path(url).mkdir(parents=True, exist_ok=exist_ok)

    def cat_file(self, url: str) -> bytes:
        return bytes(self._path(url).read_bytes())

    def pipe_file(self, url: str, contents: bytes) -> None:
        path = self._path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)

    def rm(self, url: str, recursive: bool = False) -> None:
        path = self._path(url)
        if recursive and path.is_dir():
            path.rmtree()
        else:
            path.unlink()
