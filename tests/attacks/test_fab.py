from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ancra_jax.attacks import L1, L2, Linf, accuracy_over_epsilon, is_adversarial, pgd
from ancra_jax.attacks.fab import _nearest_boundary, fab
from ancra_jax.attacks.fmn import fmn
from ancra_jax.attacks.validation import checked
from tests.support import cnn_a
from tests.support.attacked import linear, linear_model


@pytest.fixture(scope="module")
def net():
    """The reference network with the images, of the first 32, that it classifies correctly."""
    net = cnn_a.load()
    net.ranks = np.argsort(-net.ref["logits"], axis=-1).astype(np.int32)
    net.chosen = np.flatnonzero(net.ranks[:32, 0] == net.labels[:32])
    net.x, net.y = net.images[net.chosen], net.labels[net.chosen]
    return net


def norms(result):
    return -np.asarray(result.best_loss)


@pytest.mark.optimized
def test_norms_agree_with_the_reference(net):
    targets = net.ranks[net.chosen, 1]
    result = fab(net.model, net.x, net.y, Linf(cnn_a.EPSILON), targets=targets)
    expected = net.ref["fab_t2_norm"][net.chosen]
    error = np.abs(norms(result) - expected) / expected
    assert np.median(error) < 1e-4
    assert np.max(error) < 0.02
    found = net.ref["fab_t2_adversarial"][net.chosen]
    np.testing.assert_array_equal(np.isfinite(norms(result)), found)
    np.testing.assert_array_equal(result.success, norms(result) <= cnn_a.EPSILON)


@pytest.mark.parametrize(
    ("threat_model", "dual"), [(Linf(1.0), 1), (L2(1.0), 2), (L1(1.0), np.inf)]
)
@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize(("attack", "excess"), [(fab, 0.01), (fmn, 0.03)])
def test_linear_models_have_a_closed_form(threat_model, dual, targeted, attack, excess):
    """The norm is |z_t - z_y| / ||w_t - w_y||_dual; the nearest class's if untargeted."""
    kernel = np.asarray(linear_model((5, 4, 1), classes=3).args[0])
    model = Partial(lambda k, x: linear(k, x - 0.5), jnp.asarray(kernel))
    # Far from the borders of [0, 1], each at a small distance from the boundaries.
    images = np.random.default_rng(1).uniform(0.4, 0.6, (6, 5, 4, 1)).astype(np.float32)
    logits, rows = np.asarray(model(images)), np.arange(6)
    labels = logits.argmax(-1).astype(np.int32)
    distances = (logits[rows, labels][:, None] - logits) / np.maximum(
        np.linalg.norm(kernel.T[labels][:, None] - kernel.T[None], dual, axis=-1), 1e-12
    )
    distances[rows, labels] = np.inf
    targets = distances.argmin(-1).astype(np.int32) if targeted else None
    result = attack(model, images, labels, threat_model, targets=targets)
    exact = distances.min(-1)
    assert np.all(norms(result) >= exact * (1 - 1e-4))
    assert np.all(norms(result) <= exact * (1 + excess))
    radii = np.array([0.5 * exact.min(), np.median(exact), 1.1 * exact.max()])
    left = accuracy_over_epsilon([result, result], radii)
    np.testing.assert_array_equal(left, [1.0, np.mean(norms(result) > radii[1]), 0.0])
    active = exact < np.median(exact)
    some = attack(model, images, labels, threat_model, targets=targets, active=active)
    assert accuracy_over_epsilon([some], radii[1:2]) == np.mean(norms(result)[active] > radii[1])


@pytest.mark.optimized
@pytest.mark.slow
def test_l2_norms_are_confirmed_by_pgd(net):
    """PGD fools the network where, and only where, epsilon is above the norm that FAB found."""
    x, y = net.x[:8], net.y[:8]
    found = norms(fab(net.model, x, y, L2(10.0), num_steps=40))
    epsilon = float(np.median(found)) * 1.05
    step = {"step_size": epsilon / 10, "num_steps": 60}
    fooled = np.asarray(pgd(net.model, x, y, L2(epsilon), loss="margin", **step).success)
    clear = np.abs(found / epsilon - 1) > 0.04
    assert clear.sum() >= 6
    np.testing.assert_array_equal(fooled[clear], found[clear] <= epsilon)


@pytest.mark.parametrize("threat_model", [Linf(0.1), L2(0.1)])
def test_nearest_boundary_is_the_least_of_all_classes(threat_model):
    """With more classes than are differentiated at once, and not a multiple of their number."""
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.standard_normal((12, 23)), jnp.float32)
    images = jnp.asarray(rng.random((5, 2, 2, 3)), jnp.float32)
    labels = jnp.asarray([0, 3, 22, 10, 19], jnp.int32)

    def model(x):
        return jnp.sin(x.reshape(len(x), -1) @ kernel)

    problem = checked(model, images, labels, threat_model, loop="host", loss="margin").problem
    values, normals = _nearest_boundary(problem, images)
    jacobian = jax.vmap(jax.jacobian(lambda x: model(x[None])[0]))(images)
    logits, order = model(images), 1 if isinstance(threat_model, Linf) else 2
    for i, y in enumerate(labels):
        w = (jacobian[i] - jacobian[i, y]).reshape(23, -1)
        distance = jnp.abs(logits[i] - logits[i, y]) / jnp.linalg.norm(w, order, axis=-1)
        nearest = int(jnp.argmin(distance.at[y].set(jnp.inf)))
        np.testing.assert_allclose(values[i], logits[i, nearest] - logits[i, y], rtol=1e-4)
        np.testing.assert_allclose(normals[i].ravel(), w[nearest], rtol=1e-4, atol=1e-5)


def test_the_closest_misclassified_image_outside_the_ball(net):
    x, y, targets = net.x[:3], net.y[:3], net.ranks[net.chosen[:3], 1]
    attack = partial(fab, net.model, x, y, Linf(1e-4), targets=targets, num_steps=10)
    inside, outside = attack(), attack(return_outside=True)
    assert not np.any(inside.success) and not np.any(outside.success)
    np.testing.assert_array_equal(inside.images, x)
    moved = np.abs(outside.images - x).max((1, 2, 3))
    np.testing.assert_allclose(moved, norms(outside), rtol=1e-6)
    assert np.all(is_adversarial(net.model, outside.images, x, y, Linf(1.0)))
