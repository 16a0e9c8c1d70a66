import functools
import hashlib
import http.server
import io
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
from PIL import Image

from ancra_jax import data
from ancra_jax.data.sources.archives import Archive, obtain
from ancra_jax.data.sources.cifar import CIFAR10_CLASSES
from ancra_jax.errors import UsageError
from tests.support import archives
from tests.support.archives import ENCODED, JPEG, cifar_rows

PREPARED = Path("cifar10/3.0.2")


def expected(rows: np.ndarray, labels: int) -> np.ndarray:
    return rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.fixture
def cifar10_dir(tmp_path):
    """A data directory with the CIFAR-10 archive placed by hand."""
    path = tmp_path / "tfds/downloads/manual/cifar-10-binary.tar.gz"
    archives.tar(path, archives.cifar10_files())
    return tmp_path / "tfds"


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
    archives.tar(tmp_path / "cifar-100-binary.tar.gz", archives.cifar100_files())
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
    with pytest.raises(UsageError, match=r"typo: does not exist.*must hold cifar10/<version>"):
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


def test_download_is_checked_and_kept(tmp_path, monkeypatch, server):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = tmp_path / "server" / "cifar-10-binary.tar.gz"
    archives.tar(served, archives.cifar10_files())
    contents = served.read_bytes()
    archive = Archive(
        f"{server}/cifar-10-binary.tar.gz", len(contents), hashlib.sha256(contents).hexdigest()
    )
    data_dir = epath.Path(tmp_path)
    path = obtain(archive, "cifar10", data_dir)
    assert path.read_bytes() == contents and path.is_relative_to(tmp_path / "downloads")

    served.unlink()
    assert obtain(archive, "cifar10", data_dir) == path  # Not fetched again.

    served.write_bytes(contents[:-1])
    path.unlink()
    with pytest.raises(UsageError, match="wrong checksum"):
        obtain(archive, "cifar10", data_dir)


BATCH, NAMES = (f"cifar-10-batches-bin/{name}" for name in ("data_batch_2.bin", "batches.meta.txt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop(BATCH), "data_batch_2.bin"),
        (
            lambda files: files.update({BATCH: files[BATCH][:5000]}),
            "data_batch_2.bin .* 3073 .* 5000",
        ),
        (lambda files: files.update({BATCH: b"\x0a" + files[BATCH][1:]}), "data_batch_2.bin .*10"),
        (lambda files: files.update({NAMES: b"one\ntwo\n"}), "batches.meta.txt .*2"),
    ],
)
def test_damaged_archives_are_refused(cifar10_dir, change, message):
    path = cifar10_dir / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    files = archives.cifar10_files()
    change(files)
    archives.tar(path, files)
    with pytest.raises(UsageError, match=message) as error:
        data.load("cifar10", data_dir=cifar10_dir)
    assert "cifar-10-binary.tar.gz" in str(error.value)
    assert not (cifar10_dir / PREPARED).exists()


def test_unwritable_data_directory(cifar10_dir):
    (cifar10_dir / "cifar10").write_text("a file where a directory should go")
    with pytest.raises(UsageError, match="cannot be prepared in"):
        data.load("cifar10", data_dir=cifar10_dir)


# ---- CIFAR-10 from one file of JPEG images ----


@pytest.fixture
def jpeg_file(tmp_path):
    path = tmp_path / "cifar10_jpeg.npz"
    np.savez_compressed(path, **JPEG)
    return path


def test_images_and_labels_are_those_of_the_file(jpeg_file):
    dataset = data.load("cifar10", data_dir=jpeg_file)
    assert dataset.title == "CIFAR-10 (JPEG)" and dataset.class_names[1] == "automobile"
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        decoded = [np.asarray(Image.open(io.BytesIO(one))) for one in ENCODED[part]]
        np.testing.assert_array_equal(split.images, np.stack(decoded))
        np.testing.assert_array_equal(split.labels, np.arange(len(split)) % 10)


def test_the_cache_and_a_subset_remember_that_images_are_recoded(jpeg_file):
    data.load("cifar10", data_dir=str(jpeg_file))
    again = data.load("cifar10", data_dir=str(jpeg_file), train_examples=10)
    assert isinstance(again.test.images, np.memmap)
    assert again.title == "CIFAR-10 (JPEG)"


def test_a_tfds_directory_of_the_same_jpeg_images_is_the_same_data_set(jpeg_file, tmp_path):
    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cifar10"
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            label = tfds.features.ClassLabel(names=list(CIFAR10_CLASSES))
            image = tfds.features.Image(shape=(32, 32, 3), encoding_format="jpeg")
            features = tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "image": image, "label": label}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(part) for part in ENCODED}

        def _generate_examples(self, part):
            for i, image in enumerate(ENCODED[part]):
                yield i, {"id": f"{part}_{i:05d}", "image": io.BytesIO(image), "label": i % 10}

    Cifar10(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    directory = data.load("cifar10", data_dir=tmp_path / "tfds")
    assert directory.title == "CIFAR-10 (JPEG)"
    assert directory.fingerprint == data.load("cifar10", data_dir=jpeg_file).fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"test_labels": None}, "'test_labels'"),
        ({"train_lengths": np.array([3, 4], np.uint16)}, "train_lengths.* add up to 7"),
        ({"train_lengths": np.array([], np.uint16)}, "train_lengths.* add up to 0"),
        ({"test_labels": np.arange(3)}, "test_labels is int64 of shape .3,.; must be 10 whole"),
        ({"test_labels": np.arange(10.0)}, "test_labels is float64"),
        ({"test_labels": np.arange(10) * 1j}, "test_labels is complex128"),
        ({"test_labels": np.array(["1"] * 10)}, "test_labels is <U1"),
        ({"test_labels": np.full(10, 2**32 + 1)}, "label 4294967297 of test example 0"),
        ({"test_lengths": JPEG["test_lengths"].astype(float)}, "test_lengths is float64"),
        ({"test_lengths": np.array(3)}, "test_lengths is int64"),
        ({"test_lengths": np.array([-5, JPEG["test_bytes"].size + 5])}, "test_lengths, at least 1"),
        ({"test_bytes": JPEG["test_bytes"].astype("f4")}, "test_bytes is float32"),
        ({"test_labels": np.arange(10) + 1}, "label 10 of test example 9"),
        ({"test_bytes": np.zeros_like(JPEG["test_bytes"])}, "test image 0 of .* is not an"),
    ],
)
def test_damaged_contents_are_named(jpeg_file, damage, message):
    arrays = {name: array for name, array in (JPEG | damage).items() if array is not None}
    np.savez_compressed(jpeg_file, **arrays)
    with pytest.raises(UsageError, match=message):
        data.load("cifar10", data_dir=jpeg_file)


def test_a_file_that_is_missing_or_no_such_file(jpeg_file):
    with pytest.raises(UsageError, match=r"data_dir=.*other\.npz"):
        data.load("cifar10", data_dir=jpeg_file.with_name("other.npz"))
    os.truncate(jpeg_file, 1000)
    with pytest.raises(UsageError, match=rf"data_dir={jpeg_file}: "):
        data.load("cifar10", data_dir=jpeg_file)
