"""The accuracies by which the best checkpoint is chosen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.attacks.model import example_keys
from ancra_jax.data import Split
from ancra_jax.run import build, sharding
from ancra_jax.train.selection import make_select
from tests.support.small_runs import small_config

CONFIG = small_config("trades_ra", attack__epsilon=0.02, selection__step_size=0.01)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def network():
    """A network with reverse attention, its variables, and images that it labels."""
    network = build.create_network(CONFIG, 10)
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 1), np.uint8)
    variables = network.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))
    labels = network.apply(variables, jnp.asarray(images / np.float32(255))).logits.argmax(-1)
    return network, variables, Split(images, np.asarray(labels, np.int32))


def robust_under(network, variables, split, head):
    """Which examples the final logits get right after PGD on one head, by hand."""
    images, labels = jnp.asarray(split.images / np.float32(255)), jnp.asarray(split.labels)
    threat_model = attacks.Linf(CONFIG.attack.epsilon)

    def loss(images):
        outputs = network.apply(variables, images)
        heads = jnp.stack([outputs.logits, outputs.aux_logits[0]])
        chances = jax.nn.log_softmax(heads[head])
        return -jnp.take_along_axis(chances, labels[:, None], 1).sum()

    found = threat_model.random_start(example_keys(KEY, jnp.arange(len(labels))), images)
    for _ in range(CONFIG.selection.num_steps):
        found += CONFIG.selection.step_size * jnp.sign(jax.grad(loss)(found))
        found = jnp.clip(jnp.clip(found, images - 0.02, images + 0.02), 0, 1)
    return np.asarray(network.apply(variables, found).logits.argmax(-1) == labels)


@pytest.mark.parametrize("heads", ["", "final", "final_and_first"])
def test_a_robust_example_withstands_pgd_on_every_chosen_head(network, heads):
    network, variables, split = network
    expected = robust_under(network, variables, split, 0)
    if heads == "final_and_first":
        first = robust_under(network, variables, split, 1)
        assert (expected & ~first).any() and (first & ~expected).any()
        expected &= first
    selection = dataclasses.replace(CONFIG.selection, heads=heads)
    config = dataclasses.replace(CONFIG, selection=selection)
    select = make_select(network.apply, config, KEY, split, sharding.create_mesh())
    found = select({"raw": variables})
    assert found == {"natural_accuracy": 1.0, "robust_accuracy": pytest.approx(expected.mean())}
