import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax import losses
from ancra_jax.types import Outputs
from tests.support.reference_weights import GOLDEN


def test_trades_agrees_with_the_reference():
    golden = np.load(GOLDEN / "losses.npz")
    labels = jnp.asarray(golden["y"], jnp.int32)

    def trades(natural, adversarial):
        return losses.cross_entropy(natural, labels) + 6 * losses.kl_divergence(
            natural, adversarial
        )

    logits = jnp.asarray(golden["nat"]), jnp.asarray(golden["adv"])
    value, gradients = jax.value_and_grad(trades, argnums=(0, 1))(*logits)
    np.testing.assert_allclose(value, golden["trades_beta6_loss"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], golden["trades_beta6_grad_nat"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradients[1], golden["trades_beta6_grad_adv"], rtol=1e-4, atol=1e-7)


def outputs(seed, heads):
    keys = jax.random.split(jax.random.key(seed), 2)
    return Outputs(
        jax.random.normal(keys[0], (4, 3)),
        jax.random.normal(keys[1], (heads, 4, 3)),
        jnp.zeros((4, 5)),
    )


def test_combined_adds_the_mean_over_the_heads():
    natural, adversarial = outputs(0, 2), outputs(1, 2)
    value = losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=2.0)
    by_head = [
        losses.kl_divergence(natural.aux_logits[k], adversarial.aux_logits[k]) for k in (0, 1)
    ]
    final = losses.kl_divergence(natural.logits, adversarial.logits)
    np.testing.assert_allclose(value, final + 2.0 * np.mean(by_head), rtol=1e-6)


def test_combined_without_heads_is_the_term_itself():
    natural, adversarial = outputs(0, 0), outputs(1, 0)
    np.testing.assert_array_equal(
        losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=2.0),
        losses.kl_divergence(natural.logits, adversarial.logits),
    )


def test_label_smoothing_is_the_cross_entropy_to_the_smoothed_labels():
    logits = jax.random.normal(jax.random.key(2), (6, 4))
    labels = jnp.asarray([0, 1, 2, 3, 0, 1], jnp.int32)
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    targets = 0.9 * np.eye(4)[labels] + 0.1 / 4
    value = losses.cross_entropy(logits, labels, label_smoothing=0.1)
    np.testing.assert_allclose(value, np.mean(-(targets * log_p).sum(axis=1)), rtol=1e-5)
