import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax.data import Augmentation, augment

augment_jitted = jax.jit(augment, static_argnums=3)


def batch(count=64, height=8, width=6, channels=3):
    images = np.random.default_rng(0).integers(1, 256, (count, height, width, channels))
    return jnp.asarray(images, jnp.uint8), jnp.arange(count)


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
    images, indices = batch()
    sides = (1, -1) if flip else (1,)
    augmented = augment_jitted(images, indices, jax.random.key(0), Augmentation(padding, flip))
    assert augmented.dtype == jnp.uint8
    drawn = []
    for image, result in zip(np.asarray(images), np.asarray(augmented), strict=True):
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
    images, indices = batch()
    assert augment(images, indices, jax.random.key(0), Augmentation()) is images


def test_an_image_depends_on_key_and_index_alone():
    images, indices = batch()
    augmentation = Augmentation(4, True)
    whole = augment_jitted(images, indices, jax.random.key(0), augmentation)
    order = np.random.default_rng(1).permutation(64)[:10]
    part = augment(images[order], indices[order], jax.random.key(0), augmentation)
    np.testing.assert_array_equal(part, whole[order])
    other = augment_jitted(images, indices, jax.random.key(1), augmentation)
    assert (np.asarray(other) != np.asarray(whole)).any(axis=(1, 2, 3)).mean() > 0.9
