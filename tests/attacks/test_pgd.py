from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax import attacks
from ancra_jax.attacks import validation
from ancra_jax.attacks.loop import iterate

KEY = jax.random.key(0)
SHAPE = (3, 5, 4, 2)


def unchecked(function):
    """The function without the run-time check of its annotations."""
    return getattr(function, "__wrapped__", function)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def linear_model(key=KEY, classes=4, shape=SHAPE):
    weights = jax.random.normal(key, (int(np.prod(shape[1:])), classes))
    return jax.tree_util.Partial(linear, weights)


def natural(key=KEY, shape=SHAPE, low=0.3, high=0.7):
    return jax.random.uniform(key, shape, minval=low, maxval=high)


LABELS = jnp.array([0, 1, 3])
TARGETS = jnp.array([2, 2, 2])


@pytest.mark.parametrize("loop", ["host", "compiled"])
def test_linf_reaches_the_corner_of_a_linear_model(loop):
    model, images = linear_model(), natural()
    objective = attacks.targeted_margin(model, LABELS, TARGETS)
    found = attacks.pgd(
        objective, images, attacks.Linf(0.1), step_size=0.03, num_steps=9, key=KEY, loop=loop
    )
    (weights,) = model.args
    corner = jnp.sign(weights[:, TARGETS] - weights[:, LABELS]).T.reshape(SHAPE)
    np.testing.assert_allclose(found, images + 0.1 * corner, atol=1e-6)


def test_l2_reaches_the_farthest_point_of_a_linear_model():
    model, images = linear_model(), natural()
    objective = attacks.targeted_margin(model, LABELS, TARGETS)
    found = attacks.pgd(objective, images, attacks.L2(0.2), step_size=0.05, num_steps=40)
    (weights,) = model.args
    normal = (weights[:, TARGETS] - weights[:, LABELS]).T
    normal = (normal / jnp.linalg.norm(normal, axis=1, keepdims=True)).reshape(SHAPE)
    np.testing.assert_allclose(found, images + 0.2 * normal, atol=1e-5)


def test_fgsm_is_one_signed_step():
    model, images = linear_model(), natural()
    objective = attacks.cross_entropy(model, LABELS)
    gradient = jax.grad(lambda x: objective(x).sum())(images)
    found = attacks.fgsm(objective, images, attacks.Linf(0.05))
    np.testing.assert_allclose(found, images + 0.05 * jnp.sign(gradient), atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(
    epsilon=st.floats(0.001, 0.6),
    step=st.floats(0.0005, 1.0),
    norm=st.sampled_from([attacks.Linf, attacks.L2]),
    seed=st.integers(0, 99),
)
def test_iterates_stay_in_ball_and_range(epsilon, step, norm, seed):
    key = jax.random.key(seed)
    model, images = linear_model(), natural(key, low=0.0, high=1.0)
    threat_model = norm(epsilon)
    objective = attacks.cross_entropy(model, LABELS)
    start = attacks.gaussian_start(jax.random.split(key, 3), images, sigma=0.3)
    for first in ({"start": start}, {"key": key}, {}):
        found = attacks.pgd(objective, images, threat_model, step_size=step, num_steps=3, **first)
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        assert float(threat_model.norm(found - images).max()) <= epsilon + 1e-6


def test_random_starts_depend_on_the_index_alone():
    model, images = linear_model(), natural()
    objective = attacks.cross_entropy(model, LABELS)
    attack = partial(attacks.pgd, step_size=0.02, num_steps=2, key=KEY)
    indices = jnp.array([7, 11, 2])
    order = jnp.array([2, 0, 1])
    whole = attack(objective, images, attacks.Linf(0.1), indices=indices)
    permuted = attack(
        attacks.cross_entropy(model, LABELS[order]),
        images[order],
        attacks.Linf(0.1),
        indices=indices[order],
    )
    np.testing.assert_allclose(whole[order], permuted, atol=1e-7)
    default = attack(objective, images, attacks.Linf(0.1))
    assert not np.allclose(whole, default)


@pytest.mark.parametrize("loop", ["host", "compiled"])
def test_other_weights_labels_and_epsilon_do_not_compile_again(loop):
    traces = 0

    def counted(weights, images):
        nonlocal traces
        traces += 1
        return linear(weights, images)

    for seed in range(3):
        model = jax.tree_util.Partial(counted, linear_model(jax.random.key(seed)).args[0])
        attacks.pgd(
            attacks.cross_entropy(model, (LABELS + seed) % 4, aux_weight=0.5 + seed),
            natural(jax.random.key(seed)),
            attacks.Linf(0.01 * (1 + seed)),
            step_size=0.01 * (1 + seed),
            num_steps=3,
            loop=loop,
        )
        if seed == 0:
            first = traces
    assert traces == first


def test_inside_jit_and_without_gradient():
    model, images = linear_model(), natural()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(weights, images, labels):
        model = jax.tree_util.Partial(linear, weights)
        found = attacks.pgd(
            attacks.cross_entropy(model, labels),
            images,
            attacks.Linf(0.1),
            step_size=0.03,
            num_steps=4,
        )
        return found.sum()

    (weights,) = model.args
    expected = attacks.pgd(
        attacks.cross_entropy(model, LABELS), images, attacks.Linf(0.1), step_size=0.03, num_steps=4
    )
    np.testing.assert_allclose(loss(weights, images, LABELS), expected.sum(), rtol=1e-6)
    assert not jax.grad(loss)(weights, images, LABELS).any()


def test_both_loops_agree():
    model, images = linear_model(), natural()
    objective = attacks.dlr(model, LABELS)
    both = [
        attacks.pgd(objective, images, attacks.L2(0.3), step_size=0.1, num_steps=5, loop=loop)
        for loop in ("host", "compiled")
    ]
    np.testing.assert_allclose(*both, atol=1e-6)
    with pytest.raises(ValueError, match="loop='fast'"):
        unchecked(iterate)(lambda i, s: s, 0, num_steps=1, loop="fast")


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": natural() + 1}, r"lies in \[1\."),
        ({"images": natural().at[0, 0, 0, 0].set(jnp.nan)}, "NaN"),
        ({"images": jnp.ones(SHAPE, jnp.uint8)}, "dtype uint8.*divide by 255"),
        ({"step_size": 0.0}, "step_size=0"),
        ({"step_size": float("nan")}, "step_size=nan"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"start": jnp.zeros((1, 5, 4, 2))}, "start has shape"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"images": natural(), "step_size": 0.1, "num_steps": 2} | change
    images = arguments.pop("images")
    objective = attacks.cross_entropy(linear_model(), LABELS)
    with pytest.raises(ValueError, match=message):
        unchecked(attacks.pgd)(objective, images, attacks.Linf(0.1), **arguments)


@pytest.mark.parametrize("epsilon", [0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("norm", [attacks.Linf, attacks.L2])
def test_bad_epsilon(norm, epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        norm(epsilon)


def test_threat_models_are_told_apart_by_jit():
    linf, l2 = (jax.tree.structure(norm(0.1)) for norm in (attacks.Linf, attacks.L2))
    assert linf != l2
    assert linf == jax.tree.structure(attacks.Linf(0.2))


def test_threat_models_by_name():
    assert attacks.threat_model("l2", 0.5) == attacks.L2(0.5)
    with pytest.raises(ValueError, match="l1"):
        attacks.threat_model("l1", 1.0)


@pytest.mark.parametrize(
    ("model", "images", "labels", "message"),
    [
        (linear_model(), natural()[0], LABELS, r"expected \[batch, height, width, channels\]"),
        (linear_model(), natural(), LABELS[:2], r"labels has shape \(2,\): expected \[3\]"),
        (linear_model(), natural(), LABELS + 1, r"1\.\.4.*0 to 3"),
        (linear_model(), natural(), LABELS - 1, r"-1\.\.2"),
        (linear_model(), natural(), LABELS.astype(float), "dtype float32"),
        (lambda x: linear_model()(x)[:2], natural(), LABELS, r"logits of shape \(2, 4\)"),
        (lambda x: linear_model(classes=1)(x), natural(), LABELS, "at least 2 classes"),
        (lambda x: linear_model()(x) * jnp.nan, natural(), LABELS, "NaN or infinite on 3 of 3"),
    ],
)
def test_bad_batches(model, images, labels, message):
    with pytest.raises(ValueError, match=message):
        validation.clean_logits(model, images, labels)
