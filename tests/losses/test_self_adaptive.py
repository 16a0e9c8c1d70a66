import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax import losses
from tests.support.reference_weights import GOLDEN


def self_adaptive_trades(natural, adversarial, soft_labels):
    adapted = losses.adapted_labels(soft_labels, natural, 0.9)
    value = losses.self_adaptive_cross_entropy(natural, adapted)
    return value + 6 * losses.kl_divergence(natural, adversarial), adapted


def test_two_calls_agree_with_the_reference():
    golden = {name: jnp.asarray(array) for name, array in np.load(GOLDEN / "losses.npz").items()}
    one_hot = jax.nn.one_hot(golden["y"], 10)
    _, after_first = self_adaptive_trades(golden["nat_second"], golden["adv"], one_hot)
    np.testing.assert_allclose(after_first, golden["sat_labels_after_first"], rtol=1e-4)
    (value, after_second), gradients = jax.value_and_grad(
        self_adaptive_trades, argnums=(0, 1), has_aux=True
    )(golden["nat"], golden["adv"], after_first)
    np.testing.assert_allclose(value, golden["sat_second_beta6_loss"], rtol=1e-5)
    np.testing.assert_allclose(after_second, golden["sat_labels_after_second"], rtol=1e-4)
    for gradient, name in zip(gradients, ("nat", "adv"), strict=True):
        expected = golden[f"sat_second_beta6_grad_{name}"]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_loss_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((5, 4))
    soft = rng.dirichlet(np.ones(4), 5)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    weights = soft.max(axis=1)
    weights = weights * 5 / weights.sum()
    expected = np.mean(weights * -(soft * log_p).sum(axis=1))
    value = losses.self_adaptive_cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(soft, jnp.float32)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_one_hot_labels_give_the_cross_entropy():
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    labels = jnp.asarray([0, 1, 2, 3, 0, 1], jnp.int32)
    soft = losses.self_adaptive_cross_entropy(logits, jax.nn.one_hot(labels, 4))
    np.testing.assert_allclose(soft, losses.cross_entropy(logits, labels), rtol=1e-6)


def test_labels_carry_no_gradient():
    logits = jax.random.normal(jax.random.key(1), (6, 4))
    soft = jnp.full((6, 4), 0.25)
    jacobian = jax.jacobian(losses.adapted_labels, argnums=1)(soft, logits, 0.9)
    assert not np.any(jacobian)
    assert np.any(jax.jacobian(losses.adapted_labels, argnums=0)(soft, logits, 0.9))
