import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax.errors import UsageError
from ancra_jax.methods.core import attack_settings
from ancra_jax.methods.udr import SoftLinf, distributional_robustness
from ancra_jax.types import Batch, Outputs
from tests.support.method_parts import method_of
from tests.support.small_runs import small_config

EPSILON, STEP = 0.1, 0.04
ATTACK = {
    "attack__epsilon": EPSILON,
    "attack__step_size": STEP,
    "attack__num_steps": 3,
    "attack__start": "uniform",
}
BATCH = Batch(
    jax.random.uniform(jax.random.key(0), (3, 4, 4, 1)),
    jnp.asarray([0, 1, 2], jnp.int32),
    jnp.arange(3, dtype=jnp.int32),
)
KERNEL = jax.random.normal(jax.random.key(1), (16, 3))


def model(images):
    logits = images.reshape(len(images), -1) @ KERNEL
    return Outputs(logits, jnp.zeros((0, *logits.shape)), logits)


def udr(method=None, multiplier=1.0, rate=0.5, interval=2):
    settings = {"multiplier": multiplier, "rate": rate, "interval": interval}
    options = {f"udr__{name}": value for name, value in settings.items()}
    config = small_config("pgd_at", **ATTACK, **options)
    method = method or method_of("pgd_at", **ATTACK)
    return distributional_robustness(method, config, attack_settings(config))


def attack(method, state):
    plan = method.prepare(model, BATCH, jax.random.key(2), jnp.zeros((), jnp.int32))
    return method.attack(model, plan.requests, state)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), multiplier=st.floats(0, 3))
def test_the_soft_ball_takes_off_a_part_of_the_excess(seed, multiplier):
    rng = np.random.default_rng(seed)
    natural = rng.uniform(size=(2, 3, 3, 1)).astype(np.float32)
    moved = natural + rng.uniform(-0.3, 0.3, natural.shape).astype(np.float32)
    delta = moved.astype(np.float64) - natural
    outside = np.abs(delta) > EPSILON
    delta[outside] -= multiplier * (delta - np.sign(delta) * EPSILON)[outside]
    ours = SoftLinf(EPSILON, multiplier).project(jnp.asarray(moved), jnp.asarray(natural))
    np.testing.assert_allclose(ours, np.clip(natural + delta, 0, 1), atol=1e-6)


def test_at_lambda_1_it_is_the_ordinary_attack():
    plain, soft = method_of("pgd_at", **ATTACK), udr()
    hard_images, _ = attack(plain, {})
    soft_images, _ = attack(soft, soft.init_state(BATCH.labels, 3))
    np.testing.assert_allclose(soft_images["adversarial"], hard_images["adversarial"], atol=1e-6)


def test_below_1_perturbations_leave_the_ball():
    method = udr(multiplier=0.25)
    attacked, _ = attack(method, method.init_state(BATCH.labels, 3))
    size = np.abs(attacked["adversarial"] - BATCH.images).max()
    assert EPSILON + 1e-3 < size < EPSILON + 3 * STEP
    assert attacked["adversarial"].min() >= 0 and attacked["adversarial"].max() <= 1


def test_lambda_descends_by_the_mean_distance_of_an_interval():
    method = udr(interval=2)
    state = method.init_state(BATCH.labels, 3)
    expected, distances = 1.0, []
    for _ in range(4):
        attacked, state = attack(method, state)
        distances.append(float(np.abs(attacked["adversarial"] - BATCH.images).mean()))
        if len(distances) == 2:
            expected -= 0.5 * (EPSILON - np.mean(distances))
            distances = []
        np.testing.assert_allclose(state["udr"]["multiplier"], expected, rtol=1e-5)
    assert expected < 1.0


def test_lambda_stays_at_least_0():
    method = udr(rate=1e3, interval=1)
    _, state = attack(method, method.init_state(BATCH.labels, 3))
    assert state["udr"]["multiplier"] == 0.0


def test_it_keeps_the_state_of_the_method_within():
    inner = method_of("trades", **ATTACK)._replace(
        init_state=lambda labels, num_classes: {"mine": jnp.ones(len(labels))}
    )
    method = udr(inner)
    _, state = attack(method, method.init_state(BATCH.labels, 3))
    np.testing.assert_array_equal(state["mine"], jnp.ones(3))


def test_a_method_without_an_attack_is_refused():
    method = udr(method_of("natural"))
    with pytest.raises(UsageError, match=r"config\.udr\.multiplier"):
        attack(method, method.init_state(BATCH.labels, 3))
