"""Zip files (also .npz and .pt) and tar files from strangers, opened within limits.

Refused are archives that unpack to more than `unpacked_limit`, have more than 250,000 members, are
encrypted or compressed otherwise than by deflate, or hold links, devices, one name twice, absolute
names, names with ``..`` or a backslash, and names that are not UTF-8. Errors are of one line, name
the archive and its member, and come before what is refused takes memory.
"""

import contextlib
import gzip
import io
import os
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import PurePosixPath
from typing import Any, TypeVar

from ancra_jax.errors import UsageError
from ancra_jax.urls import UrlPath, as_path

Taken = TypeVar("Taken")

_UNPACKED = 256 << 20
_RATIO = 4  # to which photographs are not compressed; np.savez does not compress at all
_MEMBERS = 250_000
_DIRECTORY = 32 << 20  # bytes of a zip file's list of members
_HEADERS = 1 << 20  # bytes before the contents of a tar file's member
_FILE = 64 << 20  # of one image or one text


def unpacked_limit(archive: str | os.PathLike[str] | bytes) -> int:
    """Return how many bytes a file, or what it holds, may unpack to.

    These are 256 MiB, or 4 times its size on disk if that is more: only a large file may take much
    memory.
    """
    if isinstance(archive, bytes):
        size = len(archive)
    else:
        found = os.stat(archive)
        # A file with holes claims a size that it does not have; some file systems count no blocks.
        size = min(found.st_size, 512 * found.st_blocks or found.st_size)
    return max(_UNPACKED, _RATIO * size)


def read_file(path: str | os.PathLike[str] | UrlPath, limit: int = _FILE) -> bytes:
    """Return a file's contents; raise a ValueError if it has more bytes than ``limit``."""
    with as_path(path).open("rb") as file:
        contents = file.read(limit + 1)
    if len(contents) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return contents


@contextlib.contextmanager
def open_zip(path: str | os.PathLike[str] | UrlPath, field: str) -> Iterator[zipfile.ZipFile]:
    """Give an opened zip file, whose members were checked; errors call it ``field``.

    Raises:
      UsageError: it is no whole zip file, or a member is refused.
    """
    with contextlib.ExitStack() as stack:
        try:
            if isinstance(path, UrlPath):
                contents = path.read_bytes()
                raw: Any = io.BytesIO(contents)
                limit = unpacked_limit(contents)
            else:
                raw, limit = io.FileIO(path), unpacked_limit(path)
            file = stack.enter_context(_Bounded(raw))
            file.left = _DIRECTORY
            archive = stack.enter_context(zipfile.ZipFile(file, metadata_encoding="utf-8"))
        except Exception as error:  # OSError, BadZipFile, UnicodeDecodeError, struct.error, ...
            raise UsageError(f"{field}: is not a whole zip file ({_reason(error)})") from error
        file.left = sys.maxsize
        members = _Members(field, limit)
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            refused = ""
            if info.flag_bits & 0x1:
                refused = "is encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                refused = f"is compressed by method {info.compress_type}; deflate is allowed"
            elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                refused = "is a link or a device"
            members.check(info.orig_filename, info.file_size, refused)
        yield archive


def read_member(archive: zipfile.ZipFile, name: str, limit: int = _FILE) -> bytes:
    """Return a member's contents; raise a ValueError if it is damaged or larger than ``limit``."""
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    try:
        with archive.open(info) as file:
            # As many bytes as it claims: all others would be unpacked before they are left out.
            contents = file.read(info.file_size)
    except Exception as error:  # zipfile and zlib each raise their own.
        raise ValueError(_reason(error)) from error
    if len(contents) != info.file_size:
        raise ValueError("it ends early")
    return contents


def read_tar(path: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, bytes]:
    """Return the files of a .tar.gz that have the wanted names, whatever folder they are in.

    Raises:
      UsageError: it is damaged, or a member is refused.
    """

    def contents(file: "_Bounded", archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        file.left = member.size
        opened = archive.extractfile(member)
        return opened.read() if opened else b""

    return _from_tar(path, wanted, gzip.open, contents)


def find_in_tar(
    path: str | os.PathLike[str], wanted: Collection[str]
) -> dict[str, tuple[int, int]]:
    """Return where in a .tar the files are that `read_tar` would read: first byte, and size."""

    def place(file: Any, archive: Any, member: tarfile.TarInfo) -> tuple[int, int]:
        return member.offset_data, member.size

    return _from_tar(path, wanted, io.FileIO, place)


def _from_tar(
    path: str | os.PathLike[str],
    wanted: Collection[str],
    unpack: Callable[..., Any],
    take: Callable[["_Bounded", tarfile.TarFile, tarfile.TarInfo], Taken],
) -> dict[str, Taken]:
    """Return what ``take`` makes of the files with the wanted names; for the rest, `read_tar`."""
    files: dict[str, Taken] = {}
    try:
        with (
            unpack(path) as unpacked,
            _Bounded(unpacked) as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="strict") as archive,
        ):
            members = _Members(str(path), unpacked_limit(path))
            for member in archive:
                kept = member.isfile() or member.isdir()
                members.check(member.name, member.size, "" if kept else "is a link or a device")
                name = member.name.rsplit("/", 1)[-1]
                if name in wanted and member.isfile():
                    if name in files:
                        members.check(member.name, member.size, "is there in two folders")
                    files[name] = take(file, archive, member)
                file.left = _HEADERS
    except UsageError:
        raise
    except Exception as error:  # gzip, zlib and tarfile each raise their own.
        raise UsageError(f"{path} is damaged ({_reason(error)}); download it again") from error
    return files


class _Bounded(io.BufferedReader):
    """A file that gives at most ``left`` more bytes: whoever asks for more was misled by it."""

    left = _HEADERS

    def read(self, size: int | None = -1) -> bytes:
        wanted = sys.maxsize if size is None or size < 0 else size
        contents = super().read(min(wanted, self.left + 1))
        self.left -= len(contents)
        if self.left < 0:
            raise ValueError("what it says of its members takes too much memory")
        return contents


class _Members:
    """The members of an archive so far."""

    def __init__(self, field: str, limit: int):
        self.field = field
        self.left = self.limit = limit
        self.names: set[str] = set()

    def check(self, name: str, size: int, refused: str = "") -> None:
        """Refuse a member by its name and size, or by what else was found in it."""
        path = PurePosixPath(name)
        if not refused and (path.is_absolute() or ".." in path.parts or set(name) & {"\\", "\0"}):
            refused = "is not a relative name without '..' and backslashes"
        elif not refused and name in self.names:
            refused = "is there twice"
        elif not refused and len(self.names) == _MEMBERS:
            refused = f"is one more than the {_MEMBERS:,} members that are allowed"
        elif not refused and not 0 <= size <= self.left:
            refused = f"unpacks to {size:,} bytes; the whole archive may have {self.limit:,}"
        if refused:
            raise UsageError(f"{self.field}: its member {name!r} {refused}")
        self.names.add(name)
        self.left -= size


def _reason(error: Exception) -> str:
    """Return what an error says, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return f"the name {error.object!r} is not UTF-8"[:300]
    return (str(error) or type(error).__name__)[:300]
