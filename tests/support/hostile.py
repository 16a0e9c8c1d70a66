"""Files that a stranger might give: short tables of what is wrong, for every reader of such files.

A case is a function that writes a file into a folder and reads it as a user would, and what the one
line says that refuses it.
"""

import functools
import gzip
import io
import json
import struct
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

from ancra_jax import data
from ancra_jax.data.splits import load_extra
from ancra_jax.interop.pytorch import load_state_dict
from ancra_jax.ops.files import read_arrays
from ancra_jax.results.load import load_results
from ancra_jax.run.workdir import read_config
from tests.support import archives
from tools.publish.record import read_all

BIG = 300 << 20


@functools.cache
def zeros() -> bytes:
    """300 MiB of zeros, deflated to 300 KB."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(deflate.compress(bytes(1 << 20)) for _ in range(300)) + deflate.flush()


class Member(NamedTuple):
    """A member of a zip file, as its headers describe it."""

    name: bytes = b"evil.npy"
    contents: bytes = b"x"  # as they are stored
    claimed: int = 1
    method: int = 0
    flags: int = 0x800  # UTF-8
    mode: int = 0
    copies: int = 1


def zip_of(members: list[Member]) -> bytes:
    file, directory = io.BytesIO(), io.BytesIO()
    for one in members:
        crc = zlib.crc32(one.contents)
        for _ in range(one.copies):
            fields = (one.flags, one.method, 0, 33, crc, len(one.contents), one.claimed)
            sizes = struct.pack("<5H3I2H", 20, *fields[:4], *fields[4:], len(one.name), 0)
            place = struct.pack("<3H2I", 0, 0, 0, one.mode << 16, file.tell())
            file.write(b"PK\x03\x04" + sizes + one.name + one.contents)
            directory.write(
                b"PK\x01\x02" + struct.pack("<H", 3 << 8 | 20) + sizes + place + one.name
            )
    count = min(sum(one.copies for one in members), 0xFFFF)
    end = struct.pack("<4H2IH", 0, 0, count, count, directory.tell(), file.tell(), 0)
    return file.getvalue() + directory.getvalue() + b"PK\x05\x06" + end


def stored(files: dict[str, bytes]) -> list[Member]:
    return [Member(name.encode(), one, len(one)) for name, one in files.items()]


# What a member is, and what is said of it.
MEMBERS = {
    "encrypted": (Member(flags=0x801), r"'evil.npy' is encrypted"),
    "bzip2": (Member(method=12), r"'evil.npy' is compressed by method 12"),
    "lzma": (Member(method=14), r"'evil.npy' is compressed by method 14"),
    "unknown compression": (Member(method=99), r"'evil.npy' is compressed by method 99"),
    "link": (Member(mode=0o120777), r"'evil.npy' is a link"),
    "device": (Member(mode=0o020666), r"'evil.npy' is a link or a device"),
    "pipe": (Member(mode=0o010666), r"'evil.npy' is a link or a device"),
    "absolute": (Member(b"/etc/evil"), r"'/etc/evil' is not a relative name"),
    "parent": (Member(b"a/../../evil"), r"'a/../../evil' is not a relative name"),
    "backslash": (Member(b"..\\evil"), r"evil' is not a relative name"),
    "zero byte": (Member(b"evil\0.npy"), r"evil.*npy' is not a relative name"),
    "Latin-1 name": (Member(b"\xe9vil", flags=0), r"\\xe9vil' is not UTF-8"),
    "damaged UTF-8 name": (Member(b"\xe9vil"), r"\\xe9vil' is not UTF-8"),
    "twice": (Member(copies=2), r"'evil.npy' is there twice"),
    "bomb": (Member(contents=zeros(), claimed=BIG, method=8), r"'evil.npy' unpacks to 314,572,800"),
    "claim": (Member(claimed=0xFFFFFFFF - 1), r"'evil.npy' unpacks to 4,294,967,294"),
    "no member": (None, "is not a whole zip file"),
    "long directory": (Member(copies=800_000, contents=b"", claimed=0), "is not a whole zip file"),
}
ARRAY = io.BytesIO()
np.save(ARRAY, np.zeros(3, np.uint8))
PLAIN = {"a.npy": ARRAY.getvalue()}
EXTRA = {"image": np.zeros((2, 2, 2, 1), np.uint8), "label": np.arange(2)}


def npz(path, extra_member: list[Member], arrays: dict[str, bytes]) -> None:
    path.write_bytes(zip_of(stored(arrays) + extra_member))


READERS = {
    "arrays": ("a.npz", PLAIN, read_arrays),
    "extra data": ("e.npz", PLAIN, lambda path: load_extra(str(path), (2, 2, 1), 2)),
    "CIFAR": ("c.npz", PLAIN, lambda path: data.load("cifar10", data_dir=path)),
    "Tiny-ImageNet": (
        "t.zip",
        archives.tiny_imagenet_files(),
        lambda path: data.load("tiny_imagenet", data_dir=path),
    ),
    "PyTorch": ("w.pt", {"archive/data.pkl": b"\x80\x02}q\x00."}, load_state_dict),
}


def in_zip(reader: str, problem: str):
    name, files, read = READERS[reader]
    member = MEMBERS[problem][0]

    def case(folder):
        contents = zip_of(stored(files) + ([member] if member else []))
        (folder / name).write_bytes(contents if member else contents[:-30])
        read(folder / name)

    return case


def lying(folder):
    """A member that claims 40 bytes, and unpacks to 300 MiB."""
    files = archives.tiny_imagenet_files() | {"wnids.txt": b""}
    member = Member(b"wnids.txt", zeros(), 40, 8)
    members = [member if one.name == b"wnids.txt" else one for one in stored(files)]
    (folder / "t.zip").write_bytes(zip_of(members))
    data.load("tiny_imagenet", data_dir=folder / "t.zip")


def header(text: str, version=(1, 0)):
    """An .npy file with such a header."""

    def case(folder):
        size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
        array = b"\x93NUMPY" + bytes(version) + size + text.encode() + bytes(8)
        (folder / "a.npz").write_bytes(zip_of(stored({"evil.npy": array})))
        read_arrays(folder / "a.npz")

    return case


def described(dtype="'<f8'", shape="(1,)"):
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n"


HEADERS = {
    "terabytes": (described(shape="(1099511627776,)"), "claims float64 of shape"),
    "large product": (described(shape="(99999999999, 99999999999)"), "claims float64 of shape"),
    "negative": (described(shape="(-1,)"), "claims float64 of shape"),
    "twice negative": (described(shape="(-1, -1)"), "claims float64 of shape"),
    "too few bytes": (described(shape="(2,)"), "but there are 8 bytes"),
    "too many bytes": (described(shape="(0,)"), "but there are 8 bytes"),
    "large words": (described("'<U999999999'"), "<U999999999"),
    "no bytes each": (described("'|S0'", "(99999999999,)"), "claims"),
    "objects": (described("'|O'"), "Python objects"),
    "objects within": (described("[('a', '|O')]"), "Python objects"),
    "no dictionary": ("[1, 2]\n", "a"),
    "code": ("__import__('os').system('true')\n", "malformed"),
    "nested": ("(" * 9000 + "\n", "damaged"),
    "long": (described() + " " * 20_000, "damaged"),
    "no shape": ("{'descr': '<f8'}\n", "descr"),
    "unknown type": (described("'<q9'"), "damaged"),
}


def tar_with(*members, twist=lambda contents: contents):
    """CIFAR-10's archive with more members: names and fields, and its bytes changed."""

    def case(folder):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, contents in archives.cifar10_files().items():
                one = tarfile.TarInfo(name)
                one.size = len(contents)
                archive.addfile(one, io.BytesIO(contents))
            for fields in members:
                one = tarfile.TarInfo("evil")
                for field, value in fields.items():
                    setattr(one, field, value)
                file.write(one.tobuf(tarfile.GNU_FORMAT, "latin-1"))
                archive.offset = file.tell()
        path = folder / "cifar-10-binary.tar.gz"
        path.write_bytes(twist(gzip.compress(file.getvalue(), 1)))
        data.load("cifar10", data_dir=folder)

    return case


def pax_bomb(folder):
    """A header of 300 MiB in front of a member."""
    one = tarfile.TarInfo("evil")
    one.type, one.size = tarfile.XHDTYPE, BIG
    path = folder / "cifar-10-binary.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(one.tobuf())
        for _ in range(300):
            file.write(bytes(1 << 20))
    data.load("cifar10", data_dir=folder)


TARS = {
    "link": (tar_with({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), "'evil' is a link"),
    "hard link": (tar_with({"type": tarfile.LNKTYPE, "linkname": "x"}), "'evil' is a link"),
    "pipe": (tar_with({"type": tarfile.FIFOTYPE}), "'evil' is a link or a device"),
    "device": (tar_with({"type": tarfile.CHRTYPE}), "'evil' is a link or a device"),
    "absolute": (tar_with({"name": "/evil"}), "'/evil' is not a relative name"),
    "parent": (tar_with({"name": "a/../../evil"}), "'a/../../evil' is not a relative name"),
    "backslash": (tar_with({"name": "a\\evil"}), "evil' is not a relative name"),
    "Latin-1 name": (tar_with({"name": "\xe9vil"}), r"not UTF-8"),
    "twice": (tar_with({}, {}), "'evil' is there twice"),
    "in two folders": (tar_with({"name": "b/test_batch.bin"}), "is there in two folders"),
    "claim": (tar_with({"size": 1 << 40}), "'evil' unpacks to 1,099,511,627,776"),
    "negative": (tar_with({"size": -512}), "'evil' unpacks to -512"),
    "large header": (pax_bomb, "takes too much memory"),
    "half": (tar_with(twist=lambda contents: contents[: len(contents) // 2]), "is damaged"),
    "not packed": (tar_with(twist=gzip.decompress), "is damaged"),
    "packed twice": (tar_with(twist=gzip.compress), "is damaged"),
    "zeros": (tar_with(twist=lambda contents: gzip.compress(bytes(1 << 16))), "another archive"),
}


def png(width: int, height: int, depth: int = 8, colour: int = 2, contents: bytes = b"") -> bytes:
    """A PNG file whose header says this."""
    chunks = {b"IHDR": struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)}
    chunks |= {b"IDAT": zlib.compress(contents), b"IEND": b""}
    parts = (
        struct.pack(">I", len(one)) + kind + one + struct.pack(">I", zlib.crc32(kind + one))
        for kind, one in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(pixels: np.ndarray, image_format: str) -> bytes:
    return archives.encode(pixels, image_format)


GREY16 = np.zeros((6, 5), np.uint16)
TIFF16 = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", 9)
for tag, kind, count, value in (
    (256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2),
    (273, 4, 1, 128), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 12),
):  # fmt: skip
    TIFF16 += struct.pack("<2H2I", tag, kind, count, value)
TIFF16 += bytes(4) + struct.pack("<3H", 16, 16, 16) + bytes(12)  # 16 bits a channel, one strip

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
IMAGES = {
    "PostScript": (EPS, "cannot identify"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify"),
    "icon": (saved(np.zeros((16, 16, 3), np.uint8), "ICO"), "cannot identify"),
    "JPEG 2000": (saved(np.zeros((16, 16, 3), np.uint8), "JPEG2000"), "cannot identify"),
    "TGA": (saved(np.zeros((16, 16, 3), np.uint8), "TGA"), "cannot identify"),
    "16 bits, grey": (saved(GREY16, "PNG"), "more than 8 bits"),
    "16 bits, colour": (png(5, 6, 16, 2, bytes(31 * 6)), "more than 8 bits"),
    "16 bits, alpha": (png(5, 6, 16, 6, bytes(41 * 6)), "more than 8 bits"),
    "16 bits, grey alpha": (png(5, 6, 16, 4, bytes(21 * 6)), "more than 8 bits"),
    "16 bits, TIFF": (saved(GREY16, "TIFF"), "more than 8 bits"),
    "16 bits, colour TIFF": (TIFF16, "more than 8 bits"),
    "16 bits, PPM": (b"P6 1 1 65535\n" + bytes(6), "more than 8 bits"),
    "10 bits, PPM": (b"P6 1 1 1023\n" + bytes(6), "more than 8 bits"),
    "16 bits, plain PPM": (b"P3 1 1 999\n9 9 9\n", "more than 8 bits"),
    "16 bits, PGM": (b"P5 1 1 65535\n" + bytes(2), "more than 8 bits"),
    "floats": (b"Pf 1 1 -1.0\n" + bytes(4), "more than 8 bits"),
    "large": (png(3000, 3000, contents=bytes(9001 * 3000)), "has 3000x3000 pixels"),
    "claim, PNG": (png(100_000, 100_000), "pixels"),
    "claim, GIF": (
        b"GIF89a" + struct.pack("<2H", 65535, 65535) + bytes(3) + b"," + bytes(4)
        + struct.pack("<2H", 65535, 65535) + b"\0\2\0;",
        "pixels",
    ),
    "claim, BMP": (
        b"BM"
        + struct.pack("<3I", 99, 0, 54)
        + struct.pack("<I2i2H6I", 40, 9**8, 9**8, 1, 24, *[0] * 6),
        "pixels",
    ),
    "cut": (saved(archives.random_image(0, 60, 50, 3), "PNG")[:500], "trunc"),
    "damaged": (png(5, 6, contents=b"x"), "trunc"),
    "no colour": (png(5, 6, 8, 9), "0.png"),
    "empty": (b"", "cannot identify"),
}  # fmt: skip


def image(contents: bytes, **options):
    """The image as one of a folder whose others are right, named as a PNG."""

    def case(folder):
        good = archives.encode(archives.random_image(0, 6, 5, 3))
        places = ("train/a/0.png", "train/b/0.png", "test/b/0.png")
        archives.write_files(folder, dict.fromkeys(places, good) | {"train/a/0.png": contents})
        data.load("folder", data_dir=folder, **options)

    return case


def sparse(folder):
    """A file of a terabyte without any contents."""
    path = folder / "train/a/0.png"
    places = ("train/a/0.png", "train/b/0.png", "test/a/0.png")
    archives.write_files(folder, dict.fromkeys(places, b""))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    data.load("folder", data_dir=folder)


def safetensors(head, contents: bytes = bytes(8), length: int | None = None):
    """A safetensors file: its header as an object, and what follows."""

    def case(folder):
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        size = len(text) if length is None else length
        (folder / "w.safetensors").write_bytes(struct.pack("<Q", size) + text + contents)
        return load_state_dict(folder / "w.safetensors")

    return case


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"evil": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def sparse_tensor(folder):
    path = folder / "w.safetensors"
    head = json.dumps(tensor(shape=(1 << 38,), offsets=(0, 1 << 40))).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    with path.open("r+b") as file:
        file.truncate(8 + len(head) + (1 << 40))
    load_state_dict(path)


TENSORS = {
    "float8": (tensor("F8_E4M3", (8,)), "'evil' is of dtype 'F8_E4M3'"),
    "float8, other": (tensor("F8_E5M2", (8,)), "'evil' is of dtype 'F8_E5M2'"),
    "float4": (tensor("F4", (16,)), "'evil' is of dtype 'F4'"),
    "complex": (tensor("C64", (1,)), "'evil' is of dtype 'C64'"),
    "terabytes": (tensor(shape=(1 << 40,), offsets=(0, 1 << 42)), "'evil' of shape"),
    "wrong size": (tensor(shape=(3,)), "'evil' of shape"),
    "negative": (tensor(shape=(-1, -2)), "'evil' of shape"),
    "outside": (tensor(offsets=(8, 16)), "'evil' of shape"),
    "before": (tensor(offsets=(-8, 0)), "'evil' of shape"),
    "over another": (tensor() | {"other": tensor()["evil"]}, "of shape"),
    "left over": (tensor(shape=(1,), offsets=(0, 4)), "4 bytes belong to no array"),
    "no dictionary": ([1], "not a readable safetensors"),
    "no offsets": ({"evil": {"dtype": "F32"}}, "not a readable safetensors"),
    "words": (tensor(shape="ab"), "not a readable safetensors"),
    "a number": ({"evil": 3}, "not a readable safetensors"),
    "nested": (b"[" * 100_000, "nested"),
    "nested a little": (b'{"evil": ' + b"[" * 200 + b"]" * 200 + b"}", "nested"),
    "no JSON": (b"\xff\xfe{", "not a readable safetensors"),
}


def as_json(text: str, name: str, read):
    def case(folder):
        archives.write_files(folder, {name: text.encode()})
        read(folder)

    return case


JSON_READERS = {
    "configuration": ("config.json", lambda folder: read_config(str(folder))),
    "result": ("fgsm.json", load_results),
    "published row": ("row.json", read_all),
}
TEXTS = {
    "nested": ("[" * 100_000, "nested"),
    "nested a little": ('{"schema": ' + "[" * 500 + "]" * 500 + "}", "nested"),
    "large": (" " * (17 << 20), "more than 16,777,216 bytes"),
    "a number": ("7" * 5000, "digits"),
    "a list": ("[]", "json"),
    "nothing": ("", "json"),
}

CASES = {
    **{
        f"{reader}, {problem}": (in_zip(reader, problem), said)
        for reader in READERS
        for problem, (_, said) in MEMBERS.items()
        if reader == "arrays" or problem != "long directory"  # which takes a second to write
    },
    "Tiny-ImageNet, lying": (lying, "wnids.txt is damaged"),
    **{f"header, {name}": (header(text), said) for name, (text, said) in HEADERS.items()},
    "header, version 3": (header(described(), (3, 0)), "damaged"),
    "header, long version 2": (header(described() + " " * 70_000, (2, 0)), "damaged"),
    **{f"tar, {name}": case for name, case in TARS.items()},
    **{f"image, {name}": (image(contents), said) for name, (contents, said) in IMAGES.items()},
    "image, made smaller": (image(png(9000, 9000), image_size=4), "81,000,000 pixels"),
    "image, sparse": (sparse, "0.png"),
    **{f"tensors, {name}": (safetensors(head), said) for name, (head, said) in TENSORS.items()},
    "tensors, long header": (safetensors({}, length=1 << 60), "header claims"),
    "tensors, sparse": (sparse_tensor, "larger than what"),
    **{
        f"{reader}, {problem}": (as_json(text, *JSON_READERS[reader]), said)
        for reader in JSON_READERS
        for problem, (text, said) in TEXTS.items()
    },
}
