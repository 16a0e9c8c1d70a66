"""The terms of the losses against reference numbers and against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra_jax import losses
from ancra_jax.types import Outputs
from tests.support import GOLDEN
from tests.support.method_parts import mart, outputs, trades, trades_s2o

SEEDS = st.integers(0, 10_000)


def softmax(logits):
    return scipy.special.softmax(np.float64(logits), axis=-1)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "losses.npz") as arrays:
        return {name: jnp.asarray(array) for name, array in arrays.items()}


def sat(natural, adversarial, soft_labels):
    adapted = losses.adapted_labels(soft_labels, natural, 0.9)
    kl = losses.kl_divergence(natural, adversarial)
    return losses.self_adaptive_cross_entropy(natural, adapted) + 6 * kl


@pytest.mark.parametrize(
    ("loss", "name", "labels"),
    [
        (trades, "trades_beta6", "y"),
        (mart, "mart_lambda5", "y"),
        (trades_s2o, "s2o_trades_beta6", "y"),
        (sat, "sat_second_beta6", "sat_labels_after_first"),
    ],
)
def test_values_and_gradients_agree_with_the_reference(golden, loss, name, labels):
    arguments = golden["nat"], golden["adv"], golden[labels]
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*arguments)
    np.testing.assert_allclose(value, golden[f"{name}_loss"], rtol=1e-5)
    for gradient, side in zip(gradients, ("nat", "adv"), strict=True):
        expected = golden[f"{name}_grad_{side}"]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_soft_labels_after_two_calls_agree_with_the_reference(golden):
    first = losses.adapted_labels(jax.nn.one_hot(golden["y"], 10), golden["nat_second"], 0.9)
    np.testing.assert_allclose(first, golden["sat_labels_after_first"], rtol=1e-4)
    second = losses.adapted_labels(first, golden["nat"], 0.9)
    np.testing.assert_allclose(second, golden["sat_labels_after_second"], rtol=1e-4)


def test_dkl_is_its_definition_and_has_the_gradient_of_kl():
    """Cui et al., Theorem 1; their code sums over pairs of classes and divides by the weights."""
    natural, adversarial = jax.random.normal(jax.random.key(4), (2, 6, 5))
    weights = softmax(jax.random.normal(jax.random.key(5), (6, 5)))
    p, q = np.float64(natural), np.float64(adversarial)
    pairs = weights[:, :, None] * weights[:, None, :]
    gaps = (p[:, :, None] - p[:, None, :]) - (q[:, :, None] - q[:, None, :])
    expected = 0.25 * np.sum(pairs * gaps**2) / pairs.sum()
    found = losses.logit_differences(natural, adversarial, jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    soft = losses.soft_cross_entropy(natural, adversarial)
    log_q = scipy.special.log_softmax(q, axis=1)
    np.testing.assert_allclose(soft, -np.mean(np.sum(softmax(p) * log_q, axis=1)), rtol=1e-5)

    def decoupled(p, q):
        mse = losses.logit_differences(p, jax.lax.stop_gradient(q), jax.nn.softmax(p))
        return mse + losses.soft_cross_entropy(p, q)

    both = (jax.jit(jax.grad(f, argnums=(0, 1))) for f in (decoupled, losses.kl_divergence))
    for one, other in zip(*(f(natural, adversarial) for f in both), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "frozen",
    [
        lambda x, q: losses.soft_cross_entropy(x, q),
        lambda x, q: losses.logit_differences(q, 2 * q, jax.nn.softmax(x)),
        lambda x, q: losses.cross_entropy(q, losses.rectified_labels(x, np.arange(4), 2.0, 0.7)),
    ],
    ids=["soft targets of DKL", "weights of DKL", "rectified labels"],
)
def test_what_is_frozen_gets_no_gradient(frozen):
    to_frozen, to_other = jax.jit(jax.grad(frozen, argnums=(0, 1)))(*jnp.eye(8, 5).reshape(2, 4, 5))
    assert not np.any(to_frozen) and np.any(to_other)


def test_rectified_labels_are_their_definition():
    logits = 3 * jax.random.normal(jax.random.key(6), (40, 4))
    labels = np.arange(40) % 4
    found = np.asarray(losses.rectified_labels(logits, labels, 2.0, 0.7))
    shares = set()
    for row, label, one in zip(softmax(np.float64(logits) / 2), labels, found, strict=True):
        share = np.clip(0.7 - (row.max() - row[label]), 0, 1)
        expected = share * row + (1 - share) * (np.arange(4) == label)
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-7)
        shares.add(round(float(share), 3))
    assert {0.0, 0.7} < shares  # too wrong to be followed; right
    np.testing.assert_allclose(
        losses.cross_entropy(logits, jnp.asarray(found)),
        -np.mean(np.sum(found * scipy.special.log_softmax(np.float64(logits), axis=1), axis=1)),
        rtol=1e-5,
    )


def test_label_smoothing_is_the_cross_entropy_to_the_smoothed_labels():
    logits = jax.random.normal(jax.random.key(2), (6, 4))
    labels = jnp.asarray([0, 1, 2, 3, 0, 1], jnp.int32)
    targets = 0.9 * np.eye(4)[labels] + 0.1 / 4
    value = losses.cross_entropy(logits, labels, label_smoothing=0.1)
    expected = np.mean(-(targets * np.log(softmax(logits))).sum(axis=1))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, classes=st.sampled_from([2, 5]), scale=st.floats(0.1, 30))
def test_mart_is_its_formula(seed, classes, scale):
    rng = np.random.default_rng(seed)
    natural, adversarial = (scale * rng.standard_normal((2, 5, classes))).astype(np.float32)
    labels = rng.integers(0, classes, 5)
    total = 0.0
    for p, q, y in zip(softmax(natural), softmax(adversarial), labels, strict=True):
        total += -np.log(q[y]) - np.log(1.0001 - np.delete(q, y).max() + 1e-12)
        kl = sum(a * (np.log(a) - np.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
        total += 5 * kl * (1.0000001 - p[y])
    value = mart(jnp.asarray(natural), jnp.asarray(adversarial), jnp.asarray(labels))
    np.testing.assert_allclose(value, total / 5, rtol=2e-3)  # float32 near 1.0001 - 1


def test_marts_gradients_stay_finite_for_certain_predictions():
    natural = jnp.asarray([[300.0, 0.0, 0.0], [0.0, 300.0, 0.0]])
    adversarial = jnp.asarray([[0.0, 300.0, 0.0], [300.0, 0.0, 0.0]])
    gradient_of = jax.value_and_grad(mart, argnums=(0, 1))
    value, gradients = gradient_of(natural, adversarial, jnp.asarray([0, 0]))
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, classes=st.sampled_from([3, 5]), diagonal=st.floats(0.01, 0.9))
def test_the_second_order_divergence_is_its_formula(seed, classes, diagonal):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((5, classes))
    labels = rng.integers(0, classes, 5)
    matrix = -np.abs(sum(np.outer(o, o) for o in logits))
    for k in range(classes):
        row = matrix[k] - matrix[k].min()
        row[k] = 0.0
        matrix[k] = (1 - diagonal) * row / row.sum()
        matrix[k, k] = diagonal
    expected = 0.0
    for p, y in zip(softmax(logits), labels, strict=True):
        expected += sum(t * (np.log(t) - np.log(q)) for t, q in zip(matrix[y], p, strict=True) if t)
    single = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(losses.class_targets(single, diagonal), matrix, rtol=1e-3, atol=1e-5)
    value = losses.second_order_divergence(single, jnp.asarray(labels), diagonal)
    np.testing.assert_allclose(value, expected / 5, rtol=1e-3, atol=1e-5)


def test_targets_of_classes_that_do_not_differ_are_spread_evenly():
    targets = losses.class_targets(jnp.zeros((3, 5)), 0.2)
    np.testing.assert_allclose(targets, np.full((5, 5), 0.2), rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_the_self_adaptive_cross_entropy_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    logits, soft = rng.standard_normal((5, 4)), rng.dirichlet(np.ones(4), 5)
    weights = soft.max(axis=1) * 5 / soft.max(axis=1).sum()
    expected = np.mean(weights * -(soft * np.log(softmax(logits))).sum(axis=1))
    single = jnp.asarray(logits, jnp.float32), jnp.asarray(soft, jnp.float32)
    value = losses.self_adaptive_cross_entropy(*single)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_combined_without_heads_is_the_term_itself():
    natural, adversarial = outputs(0, heads=0), outputs(1, heads=0)
    np.testing.assert_array_equal(
        losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=2.0),
        losses.kl_divergence(natural.logits, adversarial.logits),
    )


EVERY_PAIR = jnp.ones(6, bool)


def pair(seed):
    """The logits of six natural images and of their negatives."""
    return jax.random.normal(jax.random.key(seed), (2, 6, 4))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 1))
def test_the_contrast_is_the_papers_formula(seed, alpha):
    natural, negative = pair(seed)
    p, q = softmax(natural), softmax(negative)
    total = 0.0
    for p_i, q_i in zip(p, q, strict=True):
        h = p_i.argmax()
        if h == q_i.argmax():
            total += alpha * np.sqrt(p_i[h] * q_i[h]) + (1 - alpha) * np.sqrt(p_i[h] * q_i[h])
    value = losses.asymmetric_similarity(natural, negative, EVERY_PAIR, alpha)
    np.testing.assert_allclose(value, total / len(p), rtol=1e-5, atol=1e-7)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_alpha_freezes_one_side_exactly(seed):
    natural, negative = pair(seed)
    negative = negative.at[0].set(natural[0] * 1.5)  # at least one pair is predicted alike
    gradients = jax.grad(losses.asymmetric_similarity, argnums=(0, 1))
    to_natural, to_negative = gradients(natural, negative, EVERY_PAIR, 1.0)
    assert not np.any(to_natural) and np.any(to_negative)
    to_natural, to_negative = gradients(natural, negative, EVERY_PAIR, 0.0)
    assert np.any(to_natural) and not np.any(to_negative)


def test_the_contrasts_gradients_stay_finite_where_a_probability_underflows():
    natural = jnp.asarray([[200.0, 0.0], [200.0, 0.0]])
    negative = jnp.asarray([[0.0, 200.0], [200.0, 0.0]])
    value, gradients = jax.value_and_grad(losses.asymmetric_similarity, argnums=(0, 1))(
        natural, negative, jnp.ones(2, bool), 0.5
    )
    np.testing.assert_allclose(value, 0.5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.any(gradients[1][0])  # the pair that is not predicted alike


def test_pairs_that_do_not_exist_contribute_nothing():
    natural, _ = pair(3)
    some = jnp.asarray([True, False, True, False, False, False])
    value = losses.asymmetric_similarity(natural, natural, some, 1.0)
    largest = softmax(natural).max(axis=1)
    np.testing.assert_allclose(value, (largest[0] + largest[2]) / 6, rtol=1e-6)


def test_true_class_similarity_has_its_value_freezes_one_side_and_has_a_gradient_everywhere():
    rng = np.random.default_rng(3)
    natural, negative = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    labels, valid = jnp.asarray([0, 2, 1, 0]), jnp.asarray([True, True, True, False])

    def term(natural, negative, alpha=1.0):
        return losses.true_class_similarity(natural, negative, labels, valid, alpha)

    p, q = (np.exp(np.float64(z)) for z in (natural, negative))
    p, q = (values / values.sum(1, keepdims=True) for values in (p, q))
    rows = np.arange(3)
    expected = np.sqrt(p[rows, labels[:3]] * q[rows, labels[:3]]).sum() / 4
    for alpha in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(term(natural, negative, alpha), expected, rtol=1e-5)
        jitted = jax.jit(term, static_argnums=2)
        np.testing.assert_allclose(jitted(natural, negative, alpha), expected, rtol=1e-5)
    for alpha, frozen in ((1.0, 0), (0.0, 1)):
        found = jax.grad(term, argnums=(0, 1))(natural, negative, alpha)
        assert not np.any(found[frozen]) and np.any(found[1 - frozen])
    far = jax.grad(term, argnums=1)(natural, negative.at[0].set(jnp.asarray([-1e3, 0, 0])))
    assert np.all(np.isfinite(far))


def test_margin_alignment_is_its_sum_and_its_weights_are_frozen():
    rng = np.random.default_rng(4)
    labels = jnp.asarray([0, 2, 1, 2])
    arrays = [
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((4, 3), (4, 5), (4, 5), (3, 5))
    ]

    def term(logits, natural, adversarial, rows):
        heads = jnp.zeros((0, 4, 3))
        return losses.margin_alignment(
            Outputs(jnp.zeros((4, 3)), heads, natural, rows),
            Outputs(logits, heads, adversarial, rows),
            labels,
        )

    logits, z, moved, rows = (np.float64(one) for one in arrays)
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = 0.0
    for i, y in enumerate(labels.tolist()):
        for k in {0, 1, 2} - {y}:
            bound = np.sum(np.abs((rows[y] - rows[k]) * (z[i] - moved[i])))
            expected += q[i, y] * q[i, k] * bound**2 / 4
    np.testing.assert_allclose(term(*arrays), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(term)(*arrays), expected, rtol=1e-5)
    to_logits, *others = jax.grad(term, argnums=(0, 1, 2, 3))(*arrays)
    assert not np.any(to_logits) and all(map(np.any, others))
    at_rest = jax.grad(term, argnums=(1, 3))(arrays[0], arrays[1], arrays[1], arrays[3])
    assert not any(map(np.any, at_rest))
