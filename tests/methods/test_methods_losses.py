"""What each method makes of its forwards, with reverse attention's heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks, losses
from ancra_jax.methods import AttackSettings, second_order
from ancra_jax.methods import standard as base
from ancra_jax.methods.negative_contrast import negative_contrast
from ancra_jax.methods.negatives import Negatives
from ancra_jax.methods.self_adaptive import self_adaptive_trades
from tests.support.method_parts import (
    BATCH,
    CLASSES,
    INDICES,
    LABELS,
    TRAINING,
    examples,
    forward_of,
    images,
    outputs,
    over_heads,
)

SETTINGS = AttackSettings("cross_entropy", attacks.Linf(8 / 255), 0.007, 1, "gaussian", 2.0)
NATURAL, ADVERSARIAL, NEGATIVE = outputs(0), outputs(1), outputs(2)


def cross_entropy(logits):
    return losses.cross_entropy(logits, LABELS)


def terms_of(method, examples, *stored):
    return method.loss(forward_of(*(stored or (NATURAL, ADVERSARIAL))), [], examples)


def test_mart_takes_margin_and_weight_per_head():
    terms = terms_of(base.mart(SETTINGS, 5.0, 2.0), examples())
    expected = over_heads(
        lambda p, q: losses.boosted_cross_entropy(q, LABELS) + 5 * losses.weighted_kl(p, q, LABELS),
        NATURAL,
        ADVERSARIAL,
        aux_weight=2.0,
    )
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)
    assert [int(n) for n in terms.batch_stats] == [0, 1]  # natural first


def regulariser(p, q):
    return sum(losses.second_order_divergence(logits, LABELS, 0.2) for logits in (p, q))


def test_pgd_at_s2o():
    options = {"cross_entropy_weight": 0.9, "weight": 0.05, "diagonal": 0.2}
    terms = terms_of(second_order.pgd_at_s2o(SETTINGS, 2.0, **options), examples())
    expected = over_heads(
        lambda p, q: 0.9 * cross_entropy(q) + 0.05 * regulariser(p, q),
        NATURAL,
        ADVERSARIAL,
        aux_weight=2.0,
    )
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)


def test_trades_s2o():
    options = {"cross_entropy_weight": 0.7, "weight": 0.15, "diagonal": 0.2}
    terms = terms_of(second_order.trades_s2o(SETTINGS, 6.0, 2.0, **options), examples())
    expected = over_heads(
        lambda p, q: (
            0.7 * cross_entropy(p) + 0.15 * regulariser(p, q) + 6 * losses.kl_divergence(p, q)
        ),
        NATURAL,
        ADVERSARIAL,
        aux_weight=2.0,
    )
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        base.natural(2.0, 0.1),
        base.pgd_at(SETTINGS, 2.0, 0.1),
        base.trades(SETTINGS, 0.0, 2.0, 0.1),
    ],
    ids=["natural", "pgd_at", "trades"],
)
def test_label_smoothing_reaches_the_cross_entropy_of_every_head(method):
    terms = terms_of(method, examples())
    classified = ADVERSARIAL if terms.natural is None else NATURAL
    expected = over_heads(
        lambda p: losses.cross_entropy(p, LABELS, 0.1), classified, aux_weight=2.0
    )
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)


class TestSelfAdaptive:
    method = self_adaptive_trades(SETTINGS, 6.0, 2.0, start_epoch=3, momentum=0.9)

    def state(self):
        labels = jnp.arange(TRAINING, dtype=jnp.int32) % CLASSES
        return self.method.init_state(labels.at[INDICES].set(LABELS), CLASSES)

    def test_it_starts_from_one_hot_labels_of_all_examples(self):
        soft_labels = self.state()["soft_labels"]
        assert soft_labels.shape == (TRAINING, CLASSES)
        np.testing.assert_array_equal(soft_labels[INDICES], np.eye(CLASSES)[LABELS])

    def test_before_its_epoch_it_is_trades_and_labels_stay(self):
        terms = terms_of(self.method, examples(self.state(), epoch=1))
        trades = terms_of(base.trades(SETTINGS, 6.0, 2.0), examples())
        np.testing.assert_allclose(terms.loss, trades.loss, rtol=1e-6)
        np.testing.assert_array_equal(terms.state["soft_labels"], self.state()["soft_labels"])

    def test_from_its_epoch_the_batchs_labels_move_by_index_then_count(self):
        terms = terms_of(self.method, examples(self.state(), epoch=2))
        before, after = self.state()["soft_labels"], terms.state["soft_labels"]
        moved = 0.9 * before[INDICES] + 0.1 * jax.nn.softmax(NATURAL.logits)
        np.testing.assert_allclose(after[INDICES], moved, rtol=1e-6)
        others = np.setdiff1d(np.arange(TRAINING), INDICES)
        np.testing.assert_array_equal(after[others], before[others])
        expected = over_heads(
            lambda p, q: (
                losses.self_adaptive_cross_entropy(p, moved) + 6 * losses.kl_divergence(p, q)
            ),
            NATURAL,
            ADVERSARIAL,
            aux_weight=2.0,
        )
        np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)

    def test_its_memory_carries_no_gradient(self):
        def soft_labels(logits):
            natural = NATURAL._replace(logits=logits)
            terms = terms_of(self.method, examples(self.state(), epoch=5), natural, ADVERSARIAL)
            return terms.state["soft_labels"]

        assert not np.any(jax.jacobian(soft_labels)(NATURAL.logits))


def contrasted(method, alpha=1.0):
    return negative_contrast(
        method,
        SETTINGS,
        zeta=3.0,
        alpha=alpha,
        strategy="random",
        targeted=True,
        random_epochs=0,
        aux_weight=2.0,
    )


def with_negatives():
    negatives = Negatives(
        jnp.zeros(BATCH, jnp.int32), jnp.ones(BATCH, bool), jnp.zeros(BATCH, bool)
    )
    extras = {"negatives": negatives, "negative_images": None, "negative_labels": LABELS}
    return examples(extras=extras, attacked={"negative": images(2.0)})


@pytest.mark.parametrize(
    ("method", "order"),
    [
        (base.pgd_at(SETTINGS, 2.0), [1, 0, 2]),  # a natural forward of the wrapper's own
        (base.mart(SETTINGS, 5.0, 2.0), [0, 1, 2]),
        (base.trades(SETTINGS, 6.0, 2.0), [0, 1, 2]),
    ],
    ids=["pgd_at", "mart", "trades"],
)
def test_ancra_adds_the_contrast_to_any_method(method, order):
    stored = NATURAL, ADVERSARIAL, NEGATIVE
    terms = terms_of(contrasted(method), with_negatives(), *stored)
    similarity = over_heads(
        lambda p, q: losses.asymmetric_similarity(p, q, jnp.ones(BATCH, bool), 1.0),
        NATURAL,
        NEGATIVE,
        aux_weight=2.0,
    )
    assert similarity > 0
    alone = terms_of(method, examples())
    np.testing.assert_allclose(terms.loss, alone.loss + 3 * similarity, rtol=1e-5)
    assert [int(n) for n in terms.batch_stats] == order


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_freezes_one_side_of_the_contrast_within_the_method(alpha):
    method = contrasted(base.pgd_at(SETTINGS, 2.0), alpha)

    def loss(natural, negative):
        return terms_of(method, with_negatives(), natural, ADVERSARIAL, negative).loss

    to_natural, to_negative = jax.grad(loss, argnums=(0, 1))(NATURAL, NEGATIVE)
    frozen, free = (to_natural, to_negative) if alpha == 1 else (to_negative, to_natural)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen))
    assert np.any(free.logits) and np.any(free.aux_logits)
