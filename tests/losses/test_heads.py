import numpy as np

from ancra_jax import losses
from tests.support.method_parts import outputs, over_heads


def test_combined_adds_the_mean_over_the_heads():
    natural, adversarial = outputs(0), outputs(1)
    value = losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=2.0)
    expected = over_heads(losses.kl_divergence, natural, adversarial, aux_weight=2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_combined_without_heads_is_the_term_itself():
    natural, adversarial = outputs(0, heads=0), outputs(1, heads=0)
    np.testing.assert_array_equal(
        losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=2.0),
        losses.kl_divergence(natural.logits, adversarial.logits),
    )
