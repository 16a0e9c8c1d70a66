import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.data import Augmentation, augment
from ancra_jax.errors import UsageError
from ancra_jax.types import Batch
from tests.support.processes import run_on_devices


def make_split(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 6, 3), dtype=np.uint8)
    return data.Split(images, rng.integers(0, 5, count).astype(np.int32))


def test_an_epoch_visits_each_example_once_and_compiles_once():
    split = make_split(50)
    plan = data.BatchPlan(10, 5, Augmentation(), jax.random.key(1))
    take = jax.jit(plan.batch)
    permutation = data.epoch_permutation(jax.random.key(0), 50)
    on_device = data.put_on_device(split)
    batches = [take(on_device, permutation, jnp.asarray(step)) for step in range(5, 10)]
    assert take._cache_size() == 1
    indices = np.concatenate([batch.indices for batch in batches])
    np.testing.assert_array_equal(indices, permutation)
    np.testing.assert_array_equal(np.sort(indices), np.arange(50))
    assert not np.array_equal(indices, np.arange(50))
    assert not np.array_equal(indices, data.epoch_permutation(jax.random.key(1), 50))
    for batch in batches:
        assert batch.images.dtype == jnp.float32
        np.testing.assert_array_equal(batch.labels, split.labels[batch.indices])
        expected = split.images[batch.indices].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(batch.images, expected)


def test_every_pixel_value_is_divided_exactly():
    pixels = np.arange(256, dtype=np.uint8)
    expected = (pixels / 255).astype(np.float32)
    np.testing.assert_array_equal(data.to_float(jnp.asarray(pixels)), expected)
    np.testing.assert_array_equal(jax.jit(data.to_float)(pixels), expected)
    assert expected[255] == 1 and expected[0] == 0


def test_batches_per_epoch_drops_the_rest():
    assert data.batches_per_epoch(50, 16) == 3
    assert data.batches_per_epoch(50, 50) == 1
    for batch_size in (51, 0, -1):
        with pytest.raises(UsageError, match=rf"batch_size={batch_size}: .* 50,"):
            data.batches_per_epoch(50, batch_size)


@pytest.mark.parametrize("num_examples", [None, 0, 1, 7, 8, 20])
def test_evaluation_batches_cover_the_first_examples_in_order(num_examples):
    split = make_split(20)
    batches = list(data.batches_for_evaluation(split, 8, num_examples))
    count = 20 if num_examples is None else num_examples
    assert len(batches) == -(-count // 8)
    real = [
        jax.tree.map(lambda x, m=mask: np.asarray(x)[np.asarray(m)], batch)
        for batch, mask in batches
    ]
    indices = np.concatenate([batch.indices for batch in real]) if real else np.arange(0)
    np.testing.assert_array_equal(indices, np.arange(count))
    for (batch, mask), true in zip(batches, real, strict=True):
        assert isinstance(batch, Batch)
        assert batch.images.shape == (8, 8, 6, 3) and mask.shape == (8,)
        expected = split.images[true.indices].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(true.images, expected)
        np.testing.assert_array_equal(true.labels, split.labels[true.indices])
        for filling in batch.images[~mask]:  # repeats a real image
            np.testing.assert_array_equal(filling, true.images[-1])


def test_evaluation_refuses_impossible_numbers():
    with pytest.raises(UsageError, match=r"batch_size .* 0"):
        data.batches_for_evaluation(make_split(20), 0)
    with pytest.raises(UsageError, match=r"num_examples .*20.*21"):
        data.batches_for_evaluation(make_split(20), 8, 21)


_SHARDED = """
import dataclasses
import jax
import numpy as np
from ancra_jax import data
from ancra_jax.run import sharding
from tests.data.test_pipeline import make_split

assert jax.device_count() == 8
mesh = sharding.create_mesh()
replicated, sharded = sharding.replicated(mesh), sharding.batch_sharded(mesh)
split = make_split(100)
plan = data.BatchPlan(32, 3, data.Augmentation(4, True), jax.random.key(1))
permutation = data.epoch_permutation(jax.random.key(0), 100)
one = jax.jit(plan.batch)(data.put_on_device(split), permutation, 1)
on_all = data.put_on_device(split, replicated)
take = jax.jit(dataclasses.replace(plan, sharding=sharded).batch)
eight = take(on_all, jax.device_put(permutation, replicated), 1)
jax.tree.map(np.testing.assert_array_equal, one, eight)
for batch, mask in data.batches_for_evaluation(split, 16, sharding=sharded):
    assert mask.sharding.is_equivalent_to(sharded, 1)
shards, part = on_all.images.addressable_shards, eight.images.addressable_shards[3]
print(len(shards), len(shards[3].data), len(part.data))  # each device has all images, a part
"""


def test_eight_devices_give_the_batch_of_one():
    assert run_on_devices(8, _SHARDED) == ["8 100 4"]


augment_jitted = jax.jit(augment, static_argnums=3)
IMAGES, INDICES = jnp.asarray(make_split(64).images), jnp.arange(64)


def candidates(image, padding, sides):
    """Every crop of an image, and its mirror image, by its place and side."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width, _ = image.shape
    places = itertools.product(range(2 * padding + 1), repeat=2)
    return {
        (top, left, side): padded[top : top + height, left : left + width][:, ::side]
        for (top, left), side in itertools.product(places, sides)
    }


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_results_are_crops_and_mirror_images(padding, flip):
    sides = (1, -1) if flip else (1,)
    augmented = augment_jitted(IMAGES, INDICES, jax.random.key(0), Augmentation(padding, flip))
    assert augmented.dtype == jnp.uint8
    drawn = []
    for image, result in zip(np.asarray(IMAGES), np.asarray(augmented), strict=True):
        found = candidates(image, padding, sides).items()
        (match,) = [how for how, crop in found if np.array_equal(crop, result)]
        drawn.append(match)
    places = set(range(2 * padding + 1))
    assert [set(column) for column in zip(*drawn, strict=True)] == [places, places, set(sides)]


def test_draws_are_uniform():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 2] = 255
    images = jnp.broadcast_to(jnp.asarray(image), (4000, 9, 9, 1))
    augmented = augment_jitted(images, jnp.arange(4000), jax.random.key(1), Augmentation(2, True))
    shares = np.asarray(augmented[..., 0] > 0).mean(0)
    places = np.zeros((9, 9))
    places[2:7, 0:5] += 1 / 50
    places[2:7, 4:9] += 1 / 50
    np.testing.assert_allclose(shares, places, atol=5 * np.sqrt(0.04 / 4000))


def test_nothing_to_do_is_the_identity():
    assert augment(IMAGES, INDICES, jax.random.key(0), Augmentation()) is IMAGES


def test_an_image_depends_on_key_and_index_alone():
    augmentation = Augmentation(4, True)
    whole = augment_jitted(IMAGES, INDICES, jax.random.key(0), augmentation)
    order = np.random.default_rng(1).permutation(64)[:10]
    part = augment(IMAGES[order], INDICES[order], jax.random.key(0), augmentation)
    np.testing.assert_array_equal(part, whole[order])
    other = augment_jitted(IMAGES, INDICES, jax.random.key(1), augmentation)
    assert (np.asarray(other) != np.asarray(whole)).any(axis=(1, 2, 3)).mean() > 0.9
