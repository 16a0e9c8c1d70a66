import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.errors import UsageError


def arrays(count=6, shape=(4, 3, 1), classes=3):
    images = np.arange(count * np.prod(shape), dtype=np.uint8).reshape(count, *shape)
    return images, np.arange(count, dtype=np.int32) % classes


def dataset(train=None, test=None, names=("a", "b", "c")):
    return data.Dataset(
        "mine", data.Split(*(train or arrays())), data.Split(*(test or arrays(3))), names
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, y: (i.astype(np.float32), y), r"uint8 .* got float32 .* with values 0\.0 to"),
        (lambda i, y: (i[..., 0], y), r"uint8 .* got uint8 of shape \(6, 4, 3\)"),
        (lambda i, y: (i, y.astype(np.int64)), "int32 .* got int64"),
        (lambda i, y: (i, y[:, None]), r"int32 .* shape \(6, 1\)"),
        (lambda i, y: (i[:4], y), "4 images but 6 labels"),
        (lambda i, y: (i[:, :0], y), "must have pixels"),
    ],
)
def test_wrong_arrays_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        data.Split(*change(*arrays()))


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_out_of_range_are_named(label, part):
    images, labels = arrays()
    labels[4] = label
    with pytest.raises(UsageError, match=rf"mine: label {label} of {part} example 4 .* 0\.\.2"):
        dataset(**{part: (images, labels)})


def test_inconsistent_splits_are_refused():
    with pytest.raises(UsageError, match=r"\(4, 3, 1\), test images \(4, 4, 1\)"):
        dataset(test=arrays(3, shape=(4, 4, 1)))
    with pytest.raises(UsageError, match="the test split has no examples"):
        dataset(test=arrays(0))
    with pytest.raises(UsageError, match="at least two classes"):
        dataset(train=arrays(classes=1), names=("a",))


def test_fingerprint_identifies_the_contents():
    images, labels = arrays()
    fingerprints = {dataset().fingerprint, dataset(names=("a", "b", "d")).fingerprint}
    other = images.copy()
    other[3, 2, 1, 0] += 1
    fingerprints.add(dataset(train=(other, labels)).fingerprint)
    fingerprints.add(dataset(train=(images, np.roll(labels, 1))).fingerprint)
    assert len(fingerprints) == 4
    assert dataset().fingerprint == dataset(train=(np.asfortranarray(images), labels)).fingerprint


def test_digits_are_fixed():
    digits = data.load("digits")
    assert digits.image_shape == (8, 8, 1)
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    assert "1442 images of 8x8x1" in repr(digits) and len(repr(digits)) < 300
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)
    counts = [np.bincount(split.labels) for split in (digits.train, digits.test)]
    np.testing.assert_array_equal(counts[1], (counts[0] + counts[1]) // 5)
    assert digits.fingerprint == "a2218dbb8dd5e3a4"


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(UsageError, match=r"'cifar_10': .*'cifar10'\? allowed are .*folder"):
        data.load("cifar_10")


seen = []


@data.register("bands", resizes=True)
def load_bands(options: data.SourceOptions, *, grey: int = 0) -> data.Dataset:
    seen.append(options)
    images = np.full((8, options.image_size, 4, 1), grey, np.uint8)
    split = data.Split(images, np.arange(8, dtype=np.int32) % 2)
    return data.Dataset("bands", split, split, ("even", "odd"))


def test_own_source(tmp_path):
    options = {"grey": 7}
    dataset = data.load("bands", data_dir=tmp_path, image_size=6, train_examples=4, options=options)
    assert dataset.image_shape == (6, 4, 1) and len(dataset.train) == 4
    assert seen == [data.SourceOptions(tmp_path, 6, None)]
    assert (dataset.train.images == 7).all()
    assert "bands" in data.names()


def test_a_taken_name_and_settings_that_a_source_does_not_have_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'digits'"):
        data.register("digits")
    for name, option in (("bands", "gray"), ("digits", "grey")):
        with pytest.raises(UsageError, match=rf"options\.{option}"):
            data.load(name, data_dir=tmp_path, options={option: 1})


def test_image_size_is_checked(tmp_path):
    with pytest.raises(UsageError, match=r"image_size=16: .*'digits'"):
        data.load("digits", image_size=16)
    with pytest.raises(UsageError, match=r"image_size=0: "):
        data.load("folder", data_dir=tmp_path, image_size=0)


def test_examples_are_taken_as_numpy_indexes_them():
    split = data.Split(*arrays())
    indices = np.array([1, 0, -1, -1])
    taken = split.take(indices)
    np.testing.assert_array_equal(taken.images, split.images[indices])
    np.testing.assert_array_equal(taken.labels, split.labels[indices])
    with pytest.raises(IndexError):
        split.take(np.array([len(split)]))
