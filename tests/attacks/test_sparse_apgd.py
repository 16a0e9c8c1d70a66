"""The L1 ball: Auto-PGD's sparse steps, and that the other attacks keep to it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks
from ancra_jax.attacks.apgd import run_apgd
from ancra_jax.attacks.objectives import evaluator
from ancra_jax.attacks.sparse_apgd import stages
from tests.support import GOLDEN, cnn_a
from tests.support.attacked import linear_model, problem

KEY = jax.random.key(0)


def greatest_gain(weights, images, epsilon):
    """The most that <w, x> can grow in the ball and the box: the largest |w| move first."""
    room = np.where(weights > 0, 1 - images, images).reshape(len(images), -1)
    gains = []
    for w, r in zip(np.abs(weights).reshape(len(images), -1), room, strict=True):
        order = np.argsort(-w)
        left = epsilon - np.cumsum(r[order]) + r[order]
        gains.append(np.sum(w[order] * np.clip(left, 0, r[order])))
    return np.array(gains)


def test_exact_on_a_linear_model():
    """The margin's maximum, where the box binds in many of the pixels that move."""
    model, epsilon = linear_model((8, 8, 3), classes=2), 6.0
    images = np.random.default_rng(0).random((5, 8, 8, 3)).astype(np.float32)
    labels = np.array(jnp.argmax(model(images), -1), np.int32)
    kernel = np.asarray(model.args[0])
    sign = np.where(labels == 0, 1, -1)[:, None]
    weights = (sign * (kernel[:, 1] - kernel[:, 0])).reshape(images.shape)
    exact = greatest_gain(weights, images, epsilon)
    start = attacks.objectives.margin(model, labels)(jnp.asarray(images))
    attack = partial(attacks.apgd, model, images, labels, attacks.L1(epsilon), key=KEY)
    for loss in ("margin", "ce"):
        found = attack(loss=loss, num_steps=10)
        reached = attacks.objectives.margin(model, labels)(found.images) - start
        np.testing.assert_allclose(reached[found.success], exact[found.success], rtol=1e-5)
        assert found.success.any() and found.queries.tolist() == [14] * 5
    np.testing.assert_allclose(attack(loss="margin").best_loss - start, exact, rtol=1e-5)


def test_the_radii_shrink_to_epsilon():
    assert stages(100) == [(3, 30), (2, 30), (1, 40)]
    assert stages(5) == [(3, 2), (2, 2), (1, 1)] and stages(2) == [(1, 2)] and stages(0) == [(1, 0)]


@pytest.mark.optimized
def test_agrees_with_the_reference_from_the_same_start():
    """AutoAttack's published code, epsilon 12, 30 steps; it counts rounding as changed entries.

    It ran in two builds of PyTorch, in float64, and 16 times from starts that differ by 1e-7:
    its own runs say how far rounding alone carries a loss.
    """
    net = cnn_a.load()
    with np.load(GOLDEN / "cnn_a_l1.npz") as ref:
        rows, best_losses, robust = ref.values()
    start = net.images[rows] + 2 * net.ref["start_uniform01"][rows].astype(np.float32) - 1
    images, labels, start = map(jnp.asarray, (net.images[rows], net.labels[rows], start))
    evaluate = evaluator(attacks.objectives.cross_entropy(net.model, labels), net.model)
    found = run_apgd(evaluate, start, images, labels, attacks.L1(12.0), num_steps=30)
    np.testing.assert_array_equal(~found.fooled, robust)
    usual = np.median(best_losses, axis=0)
    excess, allowed = found.best_loss / usual - 1, best_losses / usual - 1
    assert np.median(np.abs(excess)) < np.median(np.abs(allowed), axis=1).max() < 4e-3
    assert np.min(excess) > np.min(allowed) > -0.012


def test_at_least_as_strong_as_plain_pgd_with_restarts():
    net = cnn_a.load()
    rows = np.flatnonzero(net.ref["logits"].argmax(axis=1) == net.labels)[:12]
    inputs = net.model, net.images[rows], net.labels[rows], attacks.L1(12.0)
    found = attacks.apgd(*inputs, loss="margin", key=KEY, num_steps=30)
    plain = partial(attacks.pgd, *inputs, loss="margin", num_steps=30)
    broken = [plain(step_size=12 / 5, key=seed).success for seed in range(2)]
    assert 0 < np.sum(np.any(broken, axis=0)) <= np.sum(found.success) < 12


def test_autoattack_keeps_to_the_ball():
    model, images, labels = problem(batch=4)
    ball = attacks.L1(2.0)
    budget = {"num_steps": 4, "only": "apgd-ce", "progress": None}
    result = attacks.autoattack(model, images, labels, ball, **budget)
    assert result.queries[result.robust].tolist() == [1 + 5 * 9] * int(result.robust.sum())
    assert (result.broken_by != "").any()
    judged = attacks.is_adversarial(model, result.images, images, labels, ball)
    np.testing.assert_array_equal(judged, result.broken_by != "")


def test_random_starts_fill_the_ball():
    """Norms in the ball of dimension d are epsilon times Beta(d, 1), of mean d / (d + 1)."""
    natural = jnp.full((400, 2, 2, 1), 0.5)
    ball = attacks.L1(0.4)
    start = ball.random_start(attacks.example_keys(KEY, jnp.arange(400)), natural)
    norms = np.asarray(ball.norm(start - natural))
    assert norms.max() <= 0.4 and abs(norms.mean() - 0.4 * 4 / 5) < 0.02
    assert np.all(np.abs(np.mean(start - natural, axis=0)) < 0.02)
