"""A small perceptron, and images that it classifies correctly but for the first few."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (11, 6, 4, 2)


def mlp(weights, images):
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ weights[0] + 0.1)
    return hidden @ weights[1]


def mlp_model(classes=5, seed=0):
    first, second = jax.random.split(jax.random.key(seed))
    inputs = int(np.prod(SHAPE[1:]))
    weights = [
        jax.random.normal(first, (inputs, 16)) / np.sqrt(inputs),
        jax.random.normal(second, (16, classes)),
    ]
    return jax.tree_util.Partial(mlp, weights)


WEIGHTS = mlp_model().args[0]


def examples(model=None, shape=SHAPE, wrong=2, seed=0):
    """Images with the model's own predictions as labels, but for the first ``wrong``."""
    images = np.asarray(jax.random.uniform(jax.random.key(seed), shape))
    logits = np.asarray((model or mlp_model())(jnp.asarray(images)))
    labels = logits.argmax(axis=1)
    labels[:wrong] = (labels[:wrong] + 1) % logits.shape[1]
    return images, labels
