import pytest

from tests.support import archives


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """Keeps the tests out of the user's cache and data."""
    monkeypatch.setenv("ANCRA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def cifar10_files() -> dict[str, bytes]:
    return archives.cifar10_files()


@pytest.fixture
def cifar10_dir(tmp_path, cifar10_files):
    """A data directory with the CIFAR-10 archive placed by hand."""
    data_dir = tmp_path / "tfds"
    archives.tar(data_dir / "downloads" / "manual" / "cifar-10-binary.tar.gz", cifar10_files)
    return data_dir


@pytest.fixture
def tiny_imagenet_files() -> dict[str, bytes]:
    return archives.tiny_imagenet_files()
