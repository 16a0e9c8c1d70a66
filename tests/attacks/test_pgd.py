import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax import attacks
from ancra_jax.attacks import objectives
from ancra_jax.ops.pytree import select
from tests.support.attacked import linear, linear_model

KEY = jax.random.key(0)
SHAPE = (3, 5, 4, 2)
LABELS = jnp.array([0, 1, 3])
TARGETS = jnp.array([2, 2, 2])


def natural(key=KEY, shape=SHAPE, low=0.3, high=0.7):
    return jax.random.uniform(key, shape, minval=low, maxval=high)


@pytest.mark.parametrize("loop", ["host", "compiled"])
@pytest.mark.parametrize(
    ("ball", "order"), [(attacks.Linf(0.1), jnp.inf), (attacks.L2(0.2), 2)], ids=["linf", "l2"]
)
def test_ascent_and_apgd_reach_the_optimum_of_a_linear_model(ball, order, loop):
    model, images = linear_model(SHAPE[1:]), natural()
    objective = objectives.targeted_margin(model, LABELS, TARGETS)
    start = ball.random_start(jax.random.split(KEY, 3), images)
    found = attacks.ascend(objective, start, images, ball, step_size=0.1, num_steps=40, loop=loop)
    (weights,) = model.args
    normal = (weights[:, TARGETS] - weights[:, LABELS]).T
    normal = jnp.sign(normal) if order == jnp.inf else normal
    normal = normal / jnp.linalg.norm(normal, order, axis=1, keepdims=True)
    farthest = images + ball.epsilon * normal.reshape(SHAPE)
    np.testing.assert_allclose(found, farthest, atol=1e-5)
    apgd = attacks.apgd(model, images, LABELS, ball, loss=objective, key=KEY, loop=loop)
    np.testing.assert_allclose(apgd.best_loss, objective(farthest), atol=1e-3)


def test_fgsm_is_one_signed_step():
    model, images, ball = linear_model(SHAPE[1:]), natural(), attacks.Linf(0.001)
    labels = jnp.argmax(model(images), axis=-1).at[2].add(1) % 4  # the last is wrong already
    objective = objectives.cross_entropy(model, labels)
    step = images + 0.001 * jnp.sign(jax.grad(lambda x: objective(x).sum())(images))
    found = attacks.fgsm(model, images, labels, ball)
    assert found.success.any() and not found.success.all()
    expected = select(found.success, step, images)
    np.testing.assert_allclose(found.images, expected, atol=1e-7)
    np.testing.assert_allclose(found.best_loss, objective(step), rtol=1e-5)
    assert found.queries.tolist() == [2] * 3


@pytest.mark.parametrize("loss", ["ce", "targeted_dlr"])
def test_pgd_judges_the_last_iterate(loss):
    model, images, ball = linear_model(SHAPE[1:]), natural(), attacks.Linf(0.04)
    targets = TARGETS if loss.startswith("targeted") else None
    objective = objectives.objective_of(loss, model, LABELS, targets)
    steps = {"step_size": 0.02, "num_steps": 3}
    last = attacks.ascend(objective, images, images, ball, **steps)
    found = attacks.pgd(model, images, LABELS, ball, loss=loss, targets=targets, **steps)
    success = attacks.is_adversarial(model, last, images, LABELS, ball)
    np.testing.assert_array_equal(found.success, success)
    np.testing.assert_array_equal(found.images, select(success, last, images))
    np.testing.assert_allclose(found.best_loss, objective(last), rtol=1e-6)
    assert found.queries.tolist() == [4] * 3


@settings(max_examples=15, deadline=None)
@given(
    epsilon=st.floats(0.001, 0.6),
    step=st.floats(0.0005, 1.0),
    norm=st.sampled_from([attacks.Linf, attacks.L2, attacks.L1]),
    seed=st.integers(0, 99),
)
def test_iterates_stay_in_ball_and_range(epsilon, step, norm, seed):
    key = jax.random.key(seed)
    model, images, ball = linear_model(SHAPE[1:]), natural(key, low=0.0, high=1.0), norm(epsilon)
    keys = jax.random.split(key, 3)
    noisy = attacks.gaussian_start(keys, images, sigma=0.3)
    for start in (noisy, ball.random_start(keys, images), images):
        objective = objectives.cross_entropy(model, LABELS)
        found = attacks.ascend(objective, start, images, ball, step_size=step, num_steps=3)
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert float(ball.norm(found - images).max()) <= epsilon + 1e-6


def test_inside_jit_and_without_gradient():
    images, ball = natural(), attacks.Linf(0.1)

    def loss(weights, images, labels):
        model = jax.tree_util.Partial(linear, weights)
        steps = {"step_size": 0.03, "num_steps": 4}
        objective = objectives.cross_entropy(model, labels)
        last = attacks.ascend(objective, images, images, ball, **steps)
        found = attacks.pgd(model, images, labels, ball, **steps)
        return last.sum() + found.images.sum() + found.best_loss.sum()

    (weights,) = linear_model(SHAPE[1:]).args
    jitted = jax.jit(chex.assert_max_traces(n=1)(loss))
    expected = loss(weights, images, LABELS)
    np.testing.assert_allclose(jitted(weights, images, LABELS), expected, rtol=1e-6)
    gradients = jax.grad(loss, argnums=(0, 1))(weights, images, LABELS)
    assert not any(gradient.any() for gradient in gradients)


def test_gaussian_start():
    images = natural(shape=(4, 30, 30, 3))
    start = attacks.gaussian_start(jax.random.split(KEY, 4), images, sigma=0.01)
    noise = np.asarray(start - images)
    assert abs(noise.std() - 0.01) < 5e-4
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


def test_success_is_judged_afresh():
    images = jnp.full((5, 1, 2, 1), 0.5)
    model = jax.tree_util.Partial(lambda w, x: x[:, 0, :, 0] * w, jnp.ones(2))
    labels = jnp.array([0, 0, 0, 0, 1])
    candidates = images.at[:, 0, 1, 0].set(jnp.array([0.55, 0.7, 0.45, jnp.nan, 0.55]))
    found = attacks.is_adversarial(model, candidates, images, labels, attacks.Linf(0.1))
    # fooled; outside the ball; still right; not a number; fooling is relative to the label.
    assert found.tolist() == [True, False, False, False, False]


def test_threat_models_are_told_apart_by_jit():
    linf, l2 = (jax.tree.structure(norm(0.1)) for norm in (attacks.Linf, attacks.L2))
    assert linf != l2
    assert linf == jax.tree.structure(attacks.Linf(0.2))


def test_threat_models_by_name():
    assert attacks.threat_model("l2", 0.5) == attacks.L2(0.5)
    with pytest.raises(ValueError, match="l3"):
        attacks.threat_model("l3", 1.0)
