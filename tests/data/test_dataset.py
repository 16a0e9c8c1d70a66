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


def test_properties():
    mine = dataset()
    assert mine.num_classes == 3
    assert mine.image_shape == (4, 3, 1)
    assert len(mine.train) == 6
    taken = mine.train.take(np.array([4, 1]))
    np.testing.assert_array_equal(taken.labels, [1, 1])
    np.testing.assert_array_equal(taken.images, mine.train.images[[4, 1]])


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
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)
    counts = [np.bincount(split.labels) for split in (digits.train, digits.test)]
    np.testing.assert_array_equal(counts[1], (counts[0] + counts[1]) // 5)
    assert digits.fingerprint == "a2218dbb8dd5e3a4"
