import functools
import hashlib
import http.server
import os
import shutil
import threading
from pathlib import Path

import fsspec.implementations.local
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from etils.epath import backend

from ancra_jax import data
from ancra_jax.data.sources import archives
from ancra_jax.errors import UsageError
from tests.support.archives import cifar100_files, cifar_rows, tar

PREPARED = Path("cifar10/3.0.2")


def expected(rows: np.ndarray, labels: int) -> np.ndarray:
    return rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.fixture
def prepared_dir(cifar10_dir):
    """A data directory in which CIFAR-10 was prepared; its archive is gone."""
    data.load("cifar10", data_dir=cifar10_dir, cache_dir=cifar10_dir / "other_cache")
    shutil.rmtree(cifar10_dir / "downloads")
    return cifar10_dir


def test_archive_placed_by_hand_is_prepared_and_read(cifar10_dir):
    dataset = data.load("cifar10", data_dir=str(cifar10_dir))
    assert dataset.title == "CIFAR-10"
    assert dataset.class_names == tuple(f"class{i}" for i in range(10))
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (50, 10, 10)
    assert dataset.image_shape == (32, 32, 3)
    train = np.concatenate([cifar_rows(seed, 10, (10,)) for seed in range(5)])
    np.testing.assert_array_equal(dataset.train.images, expected(train, 1))
    np.testing.assert_array_equal(dataset.train.labels, train[:, 0])
    np.testing.assert_array_equal(dataset.test.images, expected(cifar_rows(5, 10, (10,)), 1))
    assert (cifar10_dir / "cifar10/3.0.2/dataset_info.json").exists()


def test_prepared_directory_is_an_ordinary_tfds_directory(prepared_dir):
    source = tfds.data_source("cifar10", split="train", data_dir=prepared_dir, download=False)
    example = source[0]
    number = int(example["id"].removeprefix(b"train_"))
    row = cifar_rows(number // 10, 10, (10,))[[number % 10]]
    np.testing.assert_array_equal(example["image"], expected(row, 1)[0])
    assert example["label"] == row[0, 0]


def test_cifar100_takes_the_fine_labels(tmp_path):
    tar(tmp_path / "cifar-100-binary.tar.gz", cifar100_files())
    dataset = data.load("cifar100", data_dir=tmp_path)
    assert dataset.num_classes == 100 and dataset.class_names[99] == "fine99"
    np.testing.assert_array_equal(dataset.train.labels, np.arange(200) % 100)
    np.testing.assert_array_equal(dataset.test.images, expected(cifar_rows(1, 100, (20, 100)), 2))


@pytest.mark.parametrize("where", ["environment", "version", "name"])
def test_ways_to_point_to_a_prepared_directory(prepared_dir, monkeypatch, where):
    if where == "environment":
        monkeypatch.setenv("TFDS_DATA_DIR", str(prepared_dir))
        dataset = data.load("cifar10")
    else:
        path = prepared_dir / (PREPARED if where == "version" else PREPARED.parent)
        dataset = data.load("cifar10", data_dir=path)
    assert len(dataset.train) == 50


def test_newest_version_is_taken(prepared_dir):
    newer = prepared_dir / "cifar10" / "3.0.10"
    newer.mkdir()
    with pytest.raises(UsageError, match=r"3\.0\.10 has no dataset_info\.json"):
        data.load("cifar10", data_dir=prepared_dir)


def test_directory_on_google_cloud_storage_is_copied(prepared_dir, monkeypatch):
    class Bucket(fsspec.implementations.local.LocalFileSystem):
        @classmethod
        def _strip_protocol(cls, path):
            return str(path).replace("gs://bucket", str(prepared_dir))

    bucket = Bucket()
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: bucket)
    dataset = data.load("cifar10", data_dir="gs://bucket")
    assert dataset.fingerprint == data.load("cifar10", data_dir=prepared_dir).fingerprint
    with pytest.raises(UsageError, match="gs://bucket has no prepared cifar100"):
        data.load("cifar100", data_dir="gs://bucket")


INFO, FEATURES = PREPARED / "dataset_info.json", PREPARED / "features.json"
TRAIN, TEST = (
    PREPARED / f"cifar10-{part}.array_record-00000-of-00001" for part in ("train", "test")
)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


DAMAGES = {
    "no info": (lambda d: (d / INFO).unlink(), "has no dataset_info"),
    "no features": (lambda d: (d / FEATURES).unlink(), "3.0.2 cannot be read"),
    "half info": (lambda d: os.truncate(d / INFO, 100), "3.0.2 cannot be read"),
    "missing shard": (lambda d: (d / TEST).unlink(), "cifar10-test.* is missing"),
    "truncated shard": (lambda d: os.truncate(d / TRAIN, 70000), "train split"),
    "empty shard": (lambda d: os.truncate(d / TRAIN, 0), "train split"),
    "wrong count": (lambda d: rewrite(d / INFO, '"50"', '"60"'), "3.0.2"),
    "no test split": (lambda d: rewrite(d / INFO, '"test"', '"rest"'), "train, rest; .* test"),
    "other data set": (lambda d: rewrite(d / INFO, '"cifar10"', '"x"'), "'x' .* 'cifar10'"),
    "other classes": (lambda d: rewrite(d / FEATURES, '"10"', '"9"'), " 9 classes .* 10 classes"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damaged_directories_are_refused_with_advice(prepared_dir, damage):
    break_it, message = DAMAGES[damage]
    break_it(prepared_dir)
    with pytest.raises(UsageError, match=message) as error:
        data.load("cifar10", data_dir=prepared_dir)
    assert str(prepared_dir) in str(error.value)
    assert "\n" not in str(error.value)
    assert (prepared_dir / TRAIN).exists()


def test_tfrecord_without_tensorflow_says_what_to_do(prepared_dir, monkeypatch):
    directory = prepared_dir / PREPARED
    rewrite(directory / "dataset_info.json", "array_record", "tfrecord")
    for path in directory.glob("*.array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install tensorflow"):
        data.load("cifar10", data_dir=prepared_dir)


def test_missing_directory_is_not_created(tmp_path):
    missing = tmp_path / "typo"
    with pytest.raises(UsageError, match=r"typo does not exist.*must hold cifar10/<version>"):
        data.load("cifar10", data_dir=missing)
    assert not missing.exists()


def test_failed_download_tells_where_to_put_the_archive(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UsageError, match=r"Name or service.*put it into .*downloads/manual"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.fixture
def server(tmp_path):
    """An HTTP server of ``tmp_path/server``; yields its address."""
    handler = functools.partial(QuietHandler, directory=tmp_path / "server")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_download_is_checked_and_kept(tmp_path, monkeypatch, cifar10_files, server):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = tmp_path / "server" / "cifar-10-binary.tar.gz"
    tar(served, cifar10_files)
    contents = served.read_bytes()
    archive = archives.Archive(
        f"{server}/cifar-10-binary.tar.gz", len(contents), hashlib.sha256(contents).hexdigest()
    )
    data_dir = epath.Path(tmp_path)
    path = archives.obtain(archive, "cifar10", data_dir)
    assert path.read_bytes() == contents and path.is_relative_to(tmp_path / "downloads")

    served.unlink()
    assert archives.obtain(archive, "cifar10", data_dir) == path  # Not fetched again.

    served.write_bytes(contents[:-1])
    path.unlink()
    with pytest.raises(UsageError, match="wrong checksum"):
        archives.obtain(archive, "cifar10", data_dir)


BATCH, NAMES = (f"cifar-10-batches-bin/{name}" for name in ("data_batch_2.bin", "batches.meta.txt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files, "is damaged"),  # the archive is then cut in half
        (lambda files: files.pop(BATCH), "data_batch_2.bin"),
        (
            lambda files: files.update({BATCH: files[BATCH][:5000]}),
            "data_batch_2.bin .* 3073 .* 5000",
        ),
        (lambda files: files.update({BATCH: b"\x0a" + files[BATCH][1:]}), "data_batch_2.bin .*10"),
        (lambda files: files.update({NAMES: b"one\ntwo\n"}), "batches.meta.txt .*2"),
    ],
)
def test_damaged_archives_are_refused(cifar10_dir, cifar10_files, change, message):
    path = cifar10_dir / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    change(cifar10_files)
    tar(path, cifar10_files)
    if message == "is damaged":
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UsageError, match=message) as error:
        data.load("cifar10", data_dir=cifar10_dir)
    assert "cifar-10-binary.tar.gz" in str(error.value)
    assert not (cifar10_dir / PREPARED).exists()


def test_unwritable_data_directory(cifar10_dir):
    (cifar10_dir / "cifar10").write_text("a file where a directory should go")
    with pytest.raises(UsageError, match="cannot be prepared in"):
        data.load("cifar10", data_dir=cifar10_dir)
