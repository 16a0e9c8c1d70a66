"""Tiny data sets in the official formats."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

from ancra_jax.leaderboard.corruptions import CORRUPTIONS

WNIDS = ("n02", "n01", "n03")


def encode(pixels: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def random_image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tar(path, files: dict[str, bytes], mode: str = "w:gz") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
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


def cifar10_files() -> dict[str, bytes]:
    """CIFAR-10 with 10 images a file: 50 to train on, 10 to test."""
    folder = "cifar-10-batches-bin/"
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    files = {
        folder + name: cifar_rows(seed, 10, (10,)).tobytes() for seed, name in enumerate(names)
    }
    return files | {folder + "batches.meta.txt": b"".join(b"class%d\n" % i for i in range(10))}


def cifar100_files() -> dict[str, bytes]:
    """CIFAR-100 with 200 images to train on and 100 to test."""
    files = {
        f"{part}.bin": cifar_rows(seed, count, (20, 100)).tobytes()
        for seed, (part, count) in enumerate({"train": 200, "test": 100}.items())
    }
    for kind, count in {"coarse": 20, "fine": 100}.items():
        names = "".join(f"{kind}{i}\n" for i in range(count))
        files[f"{kind}_label_names.txt"] = names.encode()
    return {f"cifar-100-binary/{name}": contents for name, contents in files.items()}


def corrupted_arrays(examples: int) -> dict[str, np.ndarray]:
    """CIFAR-10-C with so many images of a severity: images by the corruption, and labels."""
    arrays = {
        one: random_image(seed, 5 * examples, 32, 32, 3) for seed, one in enumerate(CORRUPTIONS)
    }
    return arrays | {"labels": np.tile(np.arange(examples, dtype=np.uint8) % 2, 5)}


def corrupted_files(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    files = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        files[f"CIFAR-10-C/{name}.npy"] = buffer.getvalue()
    return files


def tiny_imagenet_files() -> dict[str, bytes]:
    """Tiny-ImageNet's layout: 3 classes of 2 training images, 4 validation images, one grey."""
    files = {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcat\nn03\tdog\n",
    }
    for number, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"box"
        for i in range(2):
            pixels = random_image(10 * number + i, 64, 64, 3)
            if (number, i) == (0, 1):
                pixels = pixels[..., 0]
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = encode(pixels, "JPEG")
    rows = []
    for i, wnid in enumerate(["n03", "n01", "n02", "n01"]):
        files[f"val/images/val_{i}.JPEG"] = encode(random_image(100 + i, 64, 64, 3), "JPEG")
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(rows).encode()
    files["test/images/test_0.JPEG"] = encode(random_image(200, 64, 64, 3), "JPEG")
    return files


# CIFAR-10 in one file of JPEG images
SEEDS = {"train": range(20), "test": range(20, 30)}
ENCODED = {
    part: [encode(random_image(seed, 32, 32, 3), "JPEG") for seed in seeds]
    for part, seeds in SEEDS.items()
}
JPEG = {}
for part, images in ENCODED.items():
    JPEG[f"{part}_bytes"] = np.frombuffer(b"".join(images), np.uint8)
    JPEG[f"{part}_lengths"] = np.array([len(image) for image in images], np.uint16)
    JPEG[f"{part}_labels"] = (np.arange(len(images)) % 10).astype(np.uint8)
