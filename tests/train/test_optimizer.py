"""The learning rate and SGD's update against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ancra_jax.config.schema import OptimizerConfig
from ancra_jax.train.step import create_optimizer, learning_rate

EPOCHS, EPOCH, RATE = 8, 5, 0.2  # an epoch has 5 steps
STEPS = np.arange(EPOCHS * EPOCH)


def rates(**settings):
    schedule = learning_rate(OptimizerConfig(learning_rate=RATE, **settings), EPOCHS, EPOCH)
    return np.array([schedule(step) for step in STEPS])


def wave(start, end, share):
    """Half a wave of a cosine, as PyTorch's annealing functions have it."""
    return end + (start - end) / 2 * (1 + np.cos(np.pi * share))


def test_cosine_begins_after_the_warm_up_and_ends_with_training():
    np.testing.assert_allclose(rates(schedule="cosine"), wave(RATE, 0, STEPS / 40), atol=1e-7)
    expected = np.where(STEPS < 10, RATE * STEPS / 10, wave(RATE, 0, (STEPS - 10) / 30))
    found = rates(schedule="cosine", warmup_epochs=2.0)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    part = rates(schedule="constant", warmup_epochs=0.5)  # of an epoch, rounded to two steps
    np.testing.assert_allclose(part, RATE * np.minimum(STEPS / 2, 1), rtol=1e-6)


def test_one_cycle_of_cosines_is_pytorchs():
    """Two waves; OneCycleLR's ``div_factor`` is 25, its ``final_div_factor`` 10,000."""
    rise = wave(RATE / 25, RATE, STEPS / 9)  # 10 of 40 steps, counted from 0
    expected = np.where(STEPS < 9, rise, wave(RATE, RATE / 25e4, (STEPS - 9) / 30))
    found = rates(schedule="one_cycle_cosine", warmup_epochs=2.0)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_warm_up_leaves_the_milestones_where_they_are():
    milestones = {"schedule": "piecewise", "milestones": (3, 6), "decay": 0.1}
    plain, warm = rates(**milestones), rates(**milestones, warmup_epochs=1.0)
    np.testing.assert_allclose(
        plain, RATE * 0.1 ** ((STEPS >= 10) * 1 + (STEPS >= 25)), rtol=1e-5, atol=1e-8
    )
    np.testing.assert_allclose(warm[5:], plain[5:], rtol=1e-6)
    np.testing.assert_allclose(warm[:5], RATE * np.arange(5) / 5, rtol=1e-6)


PARAMS = {
    "conv": {"kernel": jnp.full((3, 2), 0.5)},
    "bn": {"scale": jnp.ones(2), "bias": jnp.full(2, -1.0)},
    "block": {"bn1": {"scale": jnp.full(2, 2.0), "bias": jnp.ones(2)}},
    "fc": {"kernel": jnp.full((2, 2), -0.5), "bias": jnp.full(2, 3.0)},
}


def after_two_steps(**settings):
    config = OptimizerConfig(learning_rate=RATE, schedule="constant", **settings)
    optimizer = create_optimizer(config, EPOCHS, EPOCH)

    @jax.jit
    def run(params):
        state = optimizer.init(params)
        for gradient in (1.0, -0.5):
            gradients = jax.tree.map(lambda w, g=gradient: jnp.full_like(w, g), params)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return run(PARAMS)


def in_numpy(weight, decay, *, nesterov):
    """PyTorch's rule: the decay, then momentum; Nesterov's looks one step ahead."""
    weight, velocity = np.float64(weight), 0.0
    for gradient in (1.0, -0.5):
        gradient += decay * weight
        velocity = 0.9 * velocity + gradient
        weight = weight - RATE * (gradient + 0.9 * velocity if nesterov else velocity)
    return weight


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("spared", ["", "batch_norm", "batch_norm_and_biases"])
def test_the_update_is_pytorchs_and_spares_what_it_should(nesterov, spared):
    found = after_two_steps(nesterov=nesterov, no_weight_decay_on=spared, weight_decay=0.1)
    for path, weight in jax.tree_util.tree_leaves_with_path(PARAMS):
        names = [entry.key for entry in path]
        free = (spared and "bn" in names[-2]) or (spared.endswith("biases") and weight.ndim == 1)
        expected = in_numpy(weight, 0.0 if free else 0.1, nesterov=nesterov)
        leaf = found
        for name in names:
            leaf = leaf[name]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, err_msg=str(names))
