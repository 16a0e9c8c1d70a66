import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ancra_jax import data
from ancra_jax.data.splits import stratified_indices
from ancra_jax.errors import UsageError


def numbered_split(count=200, classes=7, seed=0):
    """A split whose images tell their positions."""
    labels = np.random.default_rng(seed).integers(0, classes, count).astype(np.int32)
    images = np.zeros((count, 2, 1, 1), np.uint8)
    images[:, :, 0, 0] = np.stack([np.arange(count) // 256, np.arange(count) % 256], 1)
    return data.Split(images, labels)


def positions(split):
    return split.images[:, 0, 0, 0].astype(int) * 256 + split.images[:, 1, 0, 0]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(1, 12), st.data())
def test_hold_out_is_a_stratified_partition(count, classes, draw):
    split = numbered_split(count, classes)
    held_out = draw.draw(st.integers(0, count - 1))
    train, selection = data.hold_out(split, held_out, seed=draw.draw(st.integers(0, 5)))
    assert len(selection) == held_out
    both = np.concatenate([positions(train), positions(selection)])
    np.testing.assert_array_equal(np.sort(both), np.arange(count))
    for part in (train, selection):
        np.testing.assert_array_equal(part.labels, split.labels[positions(part)])
        assert (np.diff(positions(part)) > 0).all()
    counts = np.bincount(split.labels, minlength=classes)
    taken = np.bincount(selection.labels, minlength=classes)
    assert (np.abs(taken - counts * held_out / count) < 1).all()


def test_hold_out_depends_on_the_seed_alone():
    split = numbered_split()
    chosen = [positions(data.hold_out(split, 40, seed)[1]) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert not np.array_equal(chosen[0], chosen[2])


def test_stratified_choice_is_fixed():
    labels = np.arange(30, dtype=np.int32) % 3
    np.testing.assert_array_equal(stratified_indices(labels, 6, seed=0), [1, 3, 11, 13, 20, 21])


@pytest.mark.parametrize("number", [-1, 200, 1000])
def test_hold_out_refuses_impossible_numbers(number):
    with pytest.raises(UsageError, match=rf"must be 0 to 199 .*got {number}"):
        data.hold_out(numbered_split(), number, seed=0)


def test_subset_takes_a_share_of_each_class_and_the_first_test_examples():
    digits = data.load("digits")
    small = data.load("digits", train_examples=100, test_examples=30)
    np.testing.assert_array_equal(small.test.images, digits.test.images[:30])
    assert len(small.train) == 100
    assert set(np.bincount(small.train.labels)) <= {9, 10, 11}
    assert small.fingerprint != digits.fingerprint
    again = data.subset(digits, 100, 30)
    assert again.fingerprint == small.fingerprint
    assert data.subset(digits) is digits


@pytest.mark.parametrize("field", ["train_examples", "test_examples"])
@pytest.mark.parametrize("number", [0, -3, 10**6])
def test_subset_refuses_impossible_numbers(field, number):
    with pytest.raises(UsageError, match=rf"{field} must be 1 to \d+ .*got {number}"):
        data.load("digits", **{field: number})
