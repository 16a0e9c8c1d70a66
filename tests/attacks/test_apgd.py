from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax import attacks
from ancra_jax.attacks.apgd import checkpoint_windows, run_apgd
from ancra_jax.attacks.objectives import evaluator, objective_of
from ancra_jax.attacks.threat_models import at_distance
from tests.support import cnn_a
from tests.support.attacked import linear, linear_model

KEY = jax.random.key(3)
SHAPE = (3, 5, 4, 2)
LABELS = jnp.array([0, 1, 3])


def natural(key=KEY, low=0.3, high=0.7):
    return jax.random.uniform(key, SHAPE, minval=low, maxval=high)


def test_the_network_of_the_records_is_the_recorded_one():
    net = cnn_a.load()
    logits = jax.jit(lambda f, x: f(x))(net.model, net.images)
    np.testing.assert_allclose(logits, net.ref["logits"], atol=2e-5, rtol=1e-5)


def test_checkpoints():
    ends = np.flatnonzero(checkpoint_windows(100))
    assert ends.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoint_windows(100)[ends].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
    assert checkpoint_windows(1).tolist() == [0, 1]
    assert np.flatnonzero(checkpoint_windows(20)).tolist() == [4, 7, 9, *range(10, 21)]


@pytest.mark.optimized
@pytest.mark.parametrize(("name", "rank"), [("ce", None), ("dlr", None), ("t2", 1)])
def test_agrees_with_the_reference_from_the_same_start(name, rank):
    net = cnn_a.load()
    images, labels = jnp.asarray(net.images[:32]), jnp.asarray(net.labels[:32])
    threat_model = attacks.Linf(net.epsilon)
    noise = jnp.asarray(2 * net.ref["start_uniform01"] - 1)
    start = at_distance(threat_model, images, noise, net.epsilon)
    if rank is None:
        objective = objective_of(name, net.model, labels)
    else:
        targets = np.argsort(-net.ref["logits"][:32], axis=1)[:, rank]
        objective = attacks.objectives.targeted_dlr(net.model, labels, targets)
    evaluate = evaluator(objective, net.model)
    assert evaluate.judge is None
    state = run_apgd(evaluate, start, images, labels, threat_model)

    expected = net.ref[f"apgd_{name}_best_loss"]
    relative = np.abs(state.best_loss - expected) / np.maximum(np.abs(expected), 1e-6)
    assert np.median(relative) < 1e-3
    clean_right = net.ref["logits"][:32].argmax(1) == net.labels[:32]
    robust = clean_right & ~np.asarray(state.fooled)
    assert np.mean(robust == net.ref[f"apgd_{name}_robust"]) >= 0.97
    if rank is None:
        found = np.asarray(state.best_images - images)[:8] * 255 / 8
        assert np.mean(np.abs(found - net.ref[f"apgd_{name}_x_best"]) < 0.01) > 0.97


@settings(max_examples=8, deadline=None)
@given(
    threat_model=st.sampled_from([attacks.Linf(0.1), attacks.L2(0.3)]),
    loss=st.sampled_from(["ce", "dlr", "margin"]),
    seed=st.integers(0, 99),
)
def test_results_are_adversarial_where_they_say_so(threat_model, loss, seed):
    key = jax.random.key(seed)
    model, images = linear_model(SHAPE[1:]), natural(key, 0.0, 1.0)
    active = jnp.array([True, True, False])
    found = attacks.apgd(
        model, images, LABELS, threat_model, loss=loss, key=key, num_steps=7, active=active
    )
    judged = attacks.is_adversarial(model, found.images, images, LABELS, threat_model)
    np.testing.assert_array_equal(judged & active, found.success)
    untouched = ~np.asarray(found.success)
    np.testing.assert_array_equal(found.images[untouched], images[untouched])
    assert found.queries.tolist() == [8, 8, 0]


def noisy(weights, images, key):
    return linear(weights, images + 0.05 * jax.random.normal(key, images.shape))


def test_randomized_model():
    model, images = jax.tree_util.Partial(noisy, linear_model(SHAPE[1:]).args[0]), natural()
    attack = partial(attacks.apgd, randomized=True, gradient_draws=4, key=KEY, num_steps=5)
    found = attack(model, images, LABELS, attacks.Linf(0.02))
    row = slice(1, 2)
    alone = attack(model, images[row], LABELS[row], attacks.Linf(0.02), indices=jnp.array([1]))
    np.testing.assert_allclose(alone.best_loss, found.best_loss[row], rtol=1e-5)
    assert found.queries.tolist() == [24] * 3
    other = attack(model, images, LABELS, attacks.Linf(0.02), gradient_draws=1)
    assert not np.allclose(other.best_loss, found.best_loss, rtol=1e-4)
