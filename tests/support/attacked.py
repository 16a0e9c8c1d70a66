"""Small models to attack, as pytrees, with images and labels."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def linear_model(shape, classes=4):
    """A linear model of random weights [pixels, classes], its only argument."""
    weights = np.random.default_rng(0).standard_normal((int(np.prod(shape)), classes))
    return Partial(linear, jnp.asarray(weights, jnp.float32))


def tanh_network(weights, images):
    first, second = weights
    return linear(second, jnp.tanh(linear(first, images)))


def problem(batch=8, shape=(6, 6, 2), classes=4, seed=0, hidden=16):
    """A small random network, and images with the labels that it gives them."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((int(np.prod(shape)), hidden)) / np.sqrt(np.prod(shape))
    weights = [first, rng.standard_normal((hidden, classes))]
    model = Partial(tanh_network, [jnp.asarray(w, jnp.float32) for w in weights])
    images = rng.random((batch, *shape)).astype(np.float32)
    return model, images, np.array(jnp.argmax(model(images), -1), np.int32)
