"""Tiny data sets in the official formats."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

WNIDS = ("n02", "n01", "n03")


def encode(pixels: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def random_image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tar(path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))


def cifar_rows(seed: int, count: int, label_limits: tuple[int, ...]) -> np.ndarray:
    """Random examples as the binary version has them: label bytes, then red, green, blue."""
    rows = random_image(seed, count, len(label_limits) + 3072)
    for column, limit in enumerate(label_limits):
        rows[:, column] = np.arange(count) % limit
    return rows


def zip_file(path, files: dict[str, bytes], root: str = "tiny-imagenet-200/") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in files.items():
            archive.writestr(root + name, contents)


def write_files(root, files: dict[str, bytes]) -> None:
    for name, contents in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
