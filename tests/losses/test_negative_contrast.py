import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from ancra_jax.losses import asymmetric_similarity

ALL = jnp.ones(6, bool)


def pair(seed):
    """The logits of six natural images and of their negatives."""
    return jax.random.normal(jax.random.key(seed), (2, 6, 4))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 1))
def test_value_is_the_papers_formula(seed, alpha):
    natural, negative = pair(seed)
    p, q = softmax(np.float64(natural), axis=1), softmax(np.float64(negative), axis=1)
    total = 0.0
    for p_i, q_i in zip(p, q, strict=True):
        h = p_i.argmax()
        if h == q_i.argmax():
            total += alpha * np.sqrt(p_i[h] * q_i[h]) + (1 - alpha) * np.sqrt(p_i[h] * q_i[h])
    value = asymmetric_similarity(natural, negative, ALL, alpha)
    np.testing.assert_allclose(value, total / len(p), rtol=1e-5, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_alpha_freezes_one_side_exactly(seed):
    natural, negative = pair(seed)
    negative = negative.at[0].set(natural[0] * 1.5)  # at least one pair is predicted alike
    gradients = jax.grad(asymmetric_similarity, argnums=(0, 1))
    to_natural, to_negative = gradients(natural, negative, ALL, 1.0)
    assert not np.any(to_natural) and np.any(to_negative)
    to_natural, to_negative = gradients(natural, negative, ALL, 0.0)
    assert np.any(to_natural) and not np.any(to_negative)


def test_gradients_stay_finite_where_a_probability_underflows():
    natural = jnp.asarray([[200.0, 0.0], [200.0, 0.0]])
    negative = jnp.asarray([[0.0, 200.0], [200.0, 0.0]])
    value, gradients = jax.value_and_grad(asymmetric_similarity, argnums=(0, 1))(
        natural, negative, jnp.ones(2, bool), 0.5
    )
    np.testing.assert_allclose(value, 0.5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.any(gradients[1][0])  # the pair that is not predicted alike


def test_pairs_that_do_not_exist_contribute_nothing():
    natural, _ = pair(3)
    some = jnp.asarray([True, False, True, False, False, False])
    value = asymmetric_similarity(natural, natural, some, 1.0)
    largest = softmax(natural, axis=1).max(axis=1)
    np.testing.assert_allclose(value, (largest[0] + largest[2]) / 6, rtol=1e-6)
