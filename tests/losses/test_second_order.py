import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax import losses
from tests.support.reference_weights import GOLDEN


def test_s2o_trades_agrees_with_the_reference():
    golden = np.load(GOLDEN / "losses.npz")
    labels = jnp.asarray(golden["y"], jnp.int32)

    def s2o_trades(natural, adversarial):
        regulariser = sum(
            losses.second_order_divergence(logits, labels, 0.2) for logits in (natural, adversarial)
        )
        return (
            0.7 * losses.cross_entropy(natural, labels)
            + 0.15 * regulariser
            + 6 * losses.kl_divergence(natural, adversarial)
        )

    logits = jnp.asarray(golden["nat"]), jnp.asarray(golden["adv"])
    value, gradients = jax.value_and_grad(s2o_trades, argnums=(0, 1))(*logits)
    np.testing.assert_allclose(value, golden["s2o_trades_beta6_loss"], rtol=1e-5)
    for gradient, name in zip(gradients, ("nat", "adv"), strict=True):
        expected = golden[f"s2o_trades_beta6_grad_{name}"]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(3, 6), diagonal=st.floats(0.01, 0.9))
def test_the_divergence_is_its_formula(seed, classes, diagonal):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((5, classes))
    labels = rng.integers(0, classes, 5)
    matrix = np.zeros((classes, classes))
    for o in logits:
        matrix += np.outer(o, o)
    matrix = -np.abs(matrix)
    for k in range(classes):
        row = matrix[k] - matrix[k].min()
        row[k] = 0.0
        matrix[k] = (1 - diagonal) * row / row.sum()
        matrix[k, k] = diagonal
    expected = 0.0
    for o, y in zip(logits, labels, strict=True):
        log_p = o - np.log(np.exp(o).sum())
        expected += sum(t * (np.log(t) - lp) for t, lp in zip(matrix[y], log_p, strict=True) if t)
    single = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(losses.class_targets(single, diagonal), matrix, rtol=1e-3, atol=1e-5)
    value = losses.second_order_divergence(single, jnp.asarray(labels, jnp.int32), diagonal)
    np.testing.assert_allclose(value, expected / 5, rtol=1e-3, atol=1e-5)


def test_targets_carry_no_gradient():
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    assert not np.any(jax.jacobian(losses.class_targets)(logits, 0.2))


def test_rows_without_any_difference_are_spread_evenly():
    targets = losses.class_targets(jnp.zeros((3, 5)), 0.2)
    np.testing.assert_allclose(np.diag(targets), 0.2, rtol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(targets[0, 1:], 0.2, rtol=1e-6)
