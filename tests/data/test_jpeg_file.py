import io
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ancra_jax import data
from ancra_jax.data.sources import cifar
from ancra_jax.errors import UsageError
from tests.support.archives import encode

COUNTS = {"train": 20, "test": 10}


def encoded_images(part):
    rng = np.random.default_rng(COUNTS[part])
    images = rng.integers(0, 256, (COUNTS[part], 32, 32, 3), np.uint8)
    return [encode(image, "JPEG") for image in images]


def contents():
    arrays = {}
    for part, count in COUNTS.items():
        images = encoded_images(part)
        arrays[f"{part}_bytes"] = np.frombuffer(b"".join(images), np.uint8)
        arrays[f"{part}_lengths"] = np.array([len(image) for image in images], np.uint16)
        arrays[f"{part}_labels"] = (np.arange(count) % 10).astype(np.uint8)
    return arrays


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cifar10_jpeg.npz"
    np.savez_compressed(path, **contents())
    return path


def test_images_and_labels_are_those_of_the_file(file):
    dataset = data.load("cifar10", data_dir=file)
    assert dataset.title == "CIFAR-10 (JPEG)" and dataset.class_names[1] == "automobile"
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        decoded = [np.asarray(Image.open(io.BytesIO(one))) for one in encoded_images(part)]
        np.testing.assert_array_equal(split.images, np.stack(decoded))
        np.testing.assert_array_equal(split.labels, np.arange(COUNTS[part]) % 10)


def test_the_cache_and_a_subset_remember_that_images_are_recoded(file):
    data.load("cifar10", data_dir=str(file))
    again = data.load("cifar10", data_dir=str(file), train_examples=10)
    assert isinstance(again.test.images, np.memmap)
    assert again.title == "CIFAR-10 (JPEG)"


def test_a_tfds_directory_of_the_same_jpeg_images_is_the_same_data_set(file, tmp_path):
    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cifar10"
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            label = tfds.features.ClassLabel(names=list(cifar.CIFAR10_CLASSES))
            image = tfds.features.Image(shape=(32, 32, 3), encoding_format="jpeg")
            features = tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "image": image, "label": label}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(part) for part in COUNTS}

        def _generate_examples(self, part):
            for i, image in enumerate(encoded_images(part)):
                yield i, {"id": f"{part}_{i:05d}", "image": io.BytesIO(image), "label": i % 10}

    Cifar10(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    directory = data.load("cifar10", data_dir=tmp_path / "tfds")
    assert directory.title == "CIFAR-10 (JPEG)"
    assert directory.fingerprint == data.load("cifar10", data_dir=file).fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"test_labels": None}, "'test_labels'"),
        ({"train_lengths": np.array([3, 4], np.uint16)}, "train_lengths add up to 7"),
        ({"train_lengths": np.array([], np.uint16)}, "train_lengths add up to 0"),
        ({"test_labels": np.arange(3)}, "10 images but 3 labels"),
        ({"test_labels": np.arange(10) + 1}, "label 10 of test example 9"),
        ({"test_bytes": np.zeros_like(contents()["test_bytes"])}, "test image 0 of .* is not an"),
    ],
)
def test_damaged_contents_are_named(file, damage, message):
    arrays = {name: array for name, array in (contents() | damage).items() if array is not None}
    np.savez_compressed(file, **arrays)
    with pytest.raises(UsageError, match=message):
        data.load("cifar10", data_dir=file)


def test_a_file_that_is_missing_or_no_such_file(file):
    with pytest.raises(UsageError, match=r"data_dir .*other\.npz"):
        data.load("cifar10", data_dir=file.with_name("other.npz"))
    os.truncate(file, 1000)
    with pytest.raises(UsageError, match=rf"data_dir {file}: "):
        data.load("cifar10", data_dir=file)
