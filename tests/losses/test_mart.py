import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax import losses
from tests.support.reference_weights import GOLDEN


def mart(natural, adversarial, labels, weight=5.0):
    return losses.boosted_cross_entropy(adversarial, labels) + weight * losses.weighted_kl(
        natural, adversarial, labels
    )


def test_mart_agrees_with_the_reference():
    golden = np.load(GOLDEN / "losses.npz")
    labels = jnp.asarray(golden["y"], jnp.int32)
    logits = jnp.asarray(golden["nat"]), jnp.asarray(golden["adv"])
    value, gradients = jax.value_and_grad(mart, argnums=(0, 1))(*logits, labels)
    np.testing.assert_allclose(value, golden["mart_lambda5_loss"], rtol=1e-5)
    for gradient, name in zip(gradients, ("nat", "adv"), strict=True):
        expected = golden[f"mart_lambda5_grad_{name}"]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), scale=st.floats(0.1, 30))
def test_mart_is_its_formula(seed, classes, scale):
    rng = np.random.default_rng(seed)
    natural, adversarial = (scale * rng.standard_normal((2, 5, classes))).astype(np.float32)
    labels = rng.integers(0, classes, 5)
    total = 0.0
    for z, z_adv, y in zip(*np.float64((natural, adversarial)), labels, strict=True):
        p, q = (np.exp(v - v.max()) / np.exp(v - v.max()).sum() for v in (z, z_adv))
        total += -np.log(q[y]) - np.log(1.0001 - np.delete(q, y).max() + 1e-12)
        kl = sum(a * (np.log(a) - np.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
        total += 5 * kl * (1.0000001 - p[y])
    value = mart(jnp.asarray(natural), jnp.asarray(adversarial), jnp.asarray(labels, jnp.int32))
    np.testing.assert_allclose(value, total / 5, rtol=2e-3)  # float32 near 1.0001 - 1


def test_gradients_stay_finite_for_certain_predictions():
    natural = jnp.asarray([[300.0, 0.0, 0.0], [0.0, 300.0, 0.0]])
    adversarial = jnp.asarray([[0.0, 300.0, 0.0], [300.0, 0.0, 0.0]])
    labels = jnp.asarray([0, 0], jnp.int32)
    value, gradients = jax.value_and_grad(mart, argnums=(0, 1))(natural, adversarial, labels)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
