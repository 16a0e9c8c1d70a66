import pytest

from tests.support.archives import WNIDS, cifar_rows, encode, random_image, tar


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """Keeps the tests out of the user's cache and data."""
    monkeypatch.setenv("ANCRA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def cifar10_files() -> dict[str, bytes]:
    """A CIFAR-10 archive with 10 images a file: 50 to train on, 10 to test."""
    folder = "cifar-10-batches-bin/"
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    files = {
        folder + name: cifar_rows(seed, 10, (10,)).tobytes() for seed, name in enumerate(names)
    }
    files[folder + "batches.meta.txt"] = b"".join(b"class%d\n" % i for i in range(10)) + b"\n"
    return files


@pytest.fixture
def cifar10_dir(tmp_path, cifar10_files):
    """A data directory with the CIFAR-10 archive placed by hand."""
    data_dir = tmp_path / "tfds"
    tar(data_dir / "downloads" / "manual" / "cifar-10-binary.tar.gz", cifar10_files)
    return data_dir


@pytest.fixture
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
