"""The accuracies by which the best checkpoint is chosen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax.data import Split
from ancra_jax.run import sharding
from ancra_jax.train.selection import make_select
from ancra_jax.types import Outputs
from tests.support.small_runs import small_config

EPSILON = 0.03
CONFIG = small_config("trades_ra", attack__epsilon=EPSILON, selection__step_size=2 * EPSILON)


def apply(variables, images, labels=None):
    """The first head is linear; the final logits repeat its choice, and their gradient misleads."""
    score = images.reshape(len(images), -1) @ variables["w"] - variables["t"]
    first = jnp.stack([-score, score], -1)
    chosen = jax.nn.one_hot(first.argmax(-1), 2)
    return Outputs(10 * chosen - 0.01 * first, jnp.stack([first, first]), images[:, 0, :, 0])


@pytest.mark.parametrize("heads", ["", "final", "final_and_first"])
def test_a_robust_example_withstands_pgd_on_every_chosen_head(heads):
    """One step of twice epsilon reaches the corner of the ball: a linear model's worst case."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(60, 190, (50, 4, 4, 1), np.uint8)
    variables = {"w": jnp.asarray(generator.normal(size=16), jnp.float32), "t": jnp.float32(0.1)}
    w = np.asarray(variables["w"])
    scores = (pixels / 255.0).reshape(50, -1) @ w - 0.1
    split = Split(pixels, (scores > 0).astype(np.int32))
    split.labels[:5] ^= 1  # and are not classified correctly without an attack
    left = (np.abs(scores) > EPSILON * np.abs(w).sum())[5:].sum() / 50
    assert 0.1 < left < 0.8
    selection = dataclasses.replace(CONFIG.selection, heads=heads)
    config = dataclasses.replace(CONFIG, selection=selection)
    select = make_select(apply, config, jax.random.key(0), split, sharding.create_mesh())
    expected = left if heads == "final_and_first" else 0.9
    found = select({"raw": variables})
    assert found == pytest.approx({"natural_accuracy": 0.9, "robust_accuracy": expected})
