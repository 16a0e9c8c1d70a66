"""Held-out examples, subsets, extra data: what is refused, and what a batch gets of them."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from ancra_jax import data
from ancra_jax.data.splits import stratified_indices
from ancra_jax.errors import UsageError


def numbered_split(count=200, classes=7):
    """A split whose images tell their positions."""
    labels = np.random.default_rng(0).integers(0, classes, count).astype(np.int32)
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
    with pytest.raises(UsageError, match=rf"num_examples={number}: must be 0 to 199"):
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
    with pytest.raises(UsageError, match=rf"{field}={number}: must be 1 to \d+"):
        data.load("digits", **{field: number})


SHAPE, CLASSES = (4, 4, 3), 10


def arrays(count=20):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, count)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_images_and_labels_are_read(tmp_path, dtype):
    images, labels = arrays()
    np.savez(tmp_path / "extra.npz", image=images, label=labels.astype(dtype), more=images)
    split = data.load_extra(f"{tmp_path}/extra.npz", SHAPE, CLASSES)
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.labels.dtype == np.int32


IMAGES, LABELS = arrays()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"images": IMAGES, "label": LABELS}, "'image'.*'images'"),
        ({"image": IMAGES / 255, "label": LABELS}, r"float64 .*\(20, 4, 4, 3\).* uint8"),
        ({"image": IMAGES[..., :1], "label": LABELS}, r"\(20, 4, 4, 1\).*\(examples, 4, 4, 3\)"),
        ({"image": IMAGES, "label": LABELS[:19]}, r"label .*\(19,\)"),
        ({"image": IMAGES, "label": LABELS / 1}, r"label .*float64"),
        ({"image": IMAGES, "label": LABELS + 2**32}, r"label 429\d+ of example"),
        ({"image": IMAGES, "label": LABELS + 1}, r"label 10 of example \d+ .*0\.\.9"),
        ({"image": IMAGES, "label": LABELS - 10}, r"label -\d+ of example \d+ .*0\.\.9"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, r"no examples"),
        ({"image": np.array([{}]), "label": LABELS}, r"objects"),
    ],
)
def test_what_is_not_such_a_file_is_refused(tmp_path, named, message):
    path = f"{tmp_path}/extra.npz"
    np.savez(path, **named)
    with pytest.raises(UsageError, match=rf"^--config\.extra_data\.path='{path}': .*{message}"):
        data.load_extra(path, SHAPE, CLASSES)


@pytest.mark.parametrize("path", ["/nothing/there.npz", "gs://bucket/extra.npz", __file__])
def test_files_that_cannot_be_read_are_refused(path):
    with pytest.raises(UsageError, match=rf"^--config\.extra_data\.path='{path}': "):
        data.load_extra(path, SHAPE, CLASSES)


OWN, EXTRA, BATCH, COUNT = 24, 7, 8, 3


def batches(seed=0, steps=range(8), *, streamed=False):
    images, labels = arrays(OWN + EXTRA)
    whole = data.Split(images, labels.astype(np.int32))
    split = data.extend(whole.take(np.arange(OWN)), whole.take(np.arange(OWN, OWN + EXTRA)))
    on_device = data.put_on_device(split)
    permutation = data.epoch_permutation(jax.random.key(9), OWN)
    keys = jax.random.split(jax.random.key(seed))
    draws = data.ExtraDraws(COUNT, OWN, EXTRA, keys[1])
    steps_per_epoch = OWN // (BATCH - COUNT)
    plan = data.BatchPlan(BATCH, steps_per_epoch, data.Augmentation(), keys[0], extra=draws)
    take, at = jax.jit(plan.batch), lambda step: on_device
    if streamed:
        own = data.put_on_device(whole.take(np.arange(OWN)))
        on_host = data.HostExamples(whole.take(np.arange(OWN, OWN + EXTRA)), draws)
        at = lambda step: data.StreamedSplit(own, on_host.at(step))  # noqa: E731
    return split, [take(at(step), permutation, jnp.asarray(step)) for step in steps]


def test_examples_that_stay_on_the_host_make_the_same_batches():
    steps = (0, 1, 2, 6, 3)  # in order, and as a run that is continued asks for them
    pairs = zip(batches(steps=steps)[1], batches(steps=steps, streamed=True)[1], strict=True)
    for whole, streamed in pairs:
        jax.tree.map(np.testing.assert_array_equal, whole, streamed)


def test_every_batch_holds_exactly_its_share_of_extra_examples():
    split, found = batches()
    for batch in found:
        extra = np.asarray(batch.indices) >= OWN
        assert extra.sum() == COUNT and len(extra) == BATCH
        assert np.asarray(batch.indices).max() < OWN + EXTRA
        np.testing.assert_array_equal(batch.labels, split.labels[batch.indices])
        images = data.to_float(jnp.asarray(split.images[batch.indices]))
        np.testing.assert_array_equal(batch.images, images)


def test_epochs_are_counted_by_the_own_examples():
    steps = OWN // (BATCH - COUNT)
    own = [np.asarray(b.indices)[np.asarray(b.indices) < OWN] for b in batches()[1][:steps]]
    seen = np.concatenate(own)
    assert len(seen) == len(np.unique(seen)) == steps * (BATCH - COUNT)


def test_extra_examples_depend_on_the_key_and_the_step_alone():
    drawn = lambda found: [tuple(np.asarray(b.indices)[-COUNT:]) for b in found]  # noqa: E731
    first = drawn(batches()[1])
    assert drawn(batches(steps=[5])[1]) == [first[5]]
    assert len(set(first)) > 1 and drawn(batches(seed=1)[1]) != first
    # All of them are drawn, one about as often as another.
    counts = np.bincount(np.concatenate(drawn(batches(steps=range(200))[1])) - OWN)
    assert len(counts) == EXTRA and counts.min() > 50 and counts.max() < 130
