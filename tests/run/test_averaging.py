"""Averages of the weights against their closed forms in NumPy."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.models.layers import BatchNorm
from ancra_jax.run.averaging import Averaging, make_refresh_statistics, variables_of

STEPS_PER_EPOCH, EPOCHS = 3, 4
STEPS = STEPS_PER_EPOCH * EPOCHS


def weights_at(step):
    rng = np.random.default_rng(step)
    return {
        "conv": {"kernel": rng.normal(size=(3, 2)).astype(np.float32)},
        "scale": np.float32(step),
    }


def averages_of(averaging, steps=STEPS):
    """The averages after every step, from the weights above."""
    averages = averaging.init(jax.tree.map(jnp.asarray, weights_at(0)), {"mean": jnp.ones(2)})
    advance = jax.jit(averaging.advance, static_argnums=3)
    for step in range(1, steps + 1):
        averages = advance(averages, weights_at(step), jnp.asarray(step), STEPS_PER_EPOCH)
    return averages


@pytest.mark.parametrize("decay", [0.3, 0.999])  # the limit from the fourth step on; never
def test_the_exponential_average(decay):
    expected = jax.tree.map(np.float64, weights_at(0))
    for step in range(1, STEPS + 1):
        d = min(decay, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda e, w, d=d: d * e + (1 - d) * w, expected, weights_at(step))
    chex.assert_trees_all_close(averages_of(Averaging(ema_decay=decay))["ema"], expected, rtol=1e-5)


@pytest.mark.parametrize("start_epoch", [1, 3, EPOCHS])
@pytest.mark.parametrize("unfinished", [0, 2])
def test_the_mean_over_the_ends_of_epochs(start_epoch, unfinished):
    swa = averages_of(Averaging(swa_start_epoch=start_epoch), STEPS + unfinished)["swa"]
    ends = [weights_at(e * STEPS_PER_EPOCH) for e in range(start_epoch, EPOCHS + 1)]
    assert int(swa["count"]) == len(ends)
    expected = jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0), *ends)
    chex.assert_trees_all_close(swa["params"], expected, rtol=1e-5)
    if len(ends) == 1:
        chex.assert_trees_all_equal(swa["params"], ends[0])


def test_before_its_epoch_the_mean_is_not_there():
    averaging = Averaging(ema_decay=0.9, swa_start_epoch=3)
    assert averaging.weights == ("raw", "ema", "swa")
    assert averaging.weights_after(2) == ("raw", "ema")
    assert averaging.weights_after(3) == ("raw", "ema", "swa")
    assert int(averages_of(averaging, 2 * STEPS_PER_EPOCH)["swa"]["count"]) == 0


def test_nothing_is_kept_unless_asked_for():
    assert averages_of(Averaging()) == {}
    assert Averaging().weights == ("raw",)


def test_which_batch_statistics_go_with_which_weights():
    swa = {"params": 2, "batch_stats": 3, "count": 1}
    of = lambda weights: variables_of(weights, 0, 1, {"ema": 4, "swa": swa})  # noqa: E731
    assert of("raw") == {"params": 0, "batch_stats": 1}
    assert of("ema") == {"params": 4, "batch_stats": 1}
    assert of("swa") == {"params": 2, "batch_stats": 3}


class TwoNorms(nn.Module):
    """Images scaled by a parameter, normalised by two layers that forget at different rates."""

    @nn.compact
    def __call__(self, images, labels, *, train):
        del labels
        x = images * self.param("scale", nn.initializers.ones_init(), (1,))
        BatchNorm(momentum=0.9, name="slow")(x, train=train)
        # One layer that is used twice, as the last of pre-activation networks with attention.
        shared = BatchNorm(momentum=0.5, name="shared")
        shared(100 * x, train=train)
        return shared(100 * x, train=train)


def test_batch_statistics_are_the_mean_over_the_epochs_batches():
    rng = np.random.default_rng(0)
    split = data.Split(rng.integers(0, 256, (25, 4, 4, 2), dtype=np.uint8), np.zeros(25, np.int32))
    plan = data.BatchPlan(5, 5, data.Augmentation(1, True), jax.random.key(0))
    on_device, permutation = data.put_on_device(split), jnp.arange(25, dtype=jnp.int32)[::-1]
    network = TwoNorms()
    variables = network.init(jax.random.key(0), jnp.zeros((2, 4, 4, 2)), None, train=True)
    params = variables["params"] | {"scale": jnp.full(1, 3.0)}
    swa = {"params": params, "batch_stats": variables["batch_stats"], "count": 1}
    refresh = make_refresh_statistics(network.apply, plan)
    refreshed = refresh({"swa": swa}, on_device, permutation, 10)["swa"]

    batches = [plan.batch(on_device, permutation, jnp.asarray(step)) for step in range(5, 10)]
    pixels = [3.0 * np.float64(batch.images).reshape(-1, 2) for batch in batches]
    mean = np.mean([p.mean(axis=0) for p in pixels], axis=0)
    variance = np.mean([p.var(axis=0, ddof=1) for p in pixels], axis=0)
    for name, scale in (("slow", 1), ("shared", 100)):
        found = refreshed["batch_stats"][name]
        np.testing.assert_allclose(found["mean"], scale * mean, rtol=1e-5)
        np.testing.assert_allclose(found["var"], scale**2 * variance, rtol=1e-5)
    chex.assert_trees_all_equal(refreshed["params"], params)


def test_a_network_without_batch_statistics_has_nothing_to_refresh():
    def apply(variables, images, labels, *, train, mutable):
        del labels, train, mutable
        return images * variables["params"], {}

    split = data.Split(np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32))
    plan = data.BatchPlan(2, 2, data.Augmentation(), jax.random.key(0))
    averages = {"swa": {"params": jnp.ones(()), "batch_stats": {}, "count": 1}}
    operands = data.put_on_device(split), jnp.arange(4, dtype=jnp.int32)
    refreshed = make_refresh_statistics(apply, plan)(averages, *operands, 2)
    assert refreshed["swa"]["batch_stats"] == {}
