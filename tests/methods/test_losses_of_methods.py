"""What each method and each wrapper makes of its forwards, with reverse attention's heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import losses
from ancra_jax.errors import Problems, UsageError
from ancra_jax.methods.core import AttackRequest, Plan, Terms, attack_settings, signed_objective
from ancra_jax.methods.distillation import distillation
from ancra_jax.methods.random_masks import mask_classes
from ancra_jax.run import build
from ancra_jax.types import Outputs
from tests.support.method_parts import (
    BATCH,
    CLASSES,
    EQUATIONS,
    INDICES,
    LABELS,
    TRAINING,
    every_negative,
    examples,
    images,
    method_of,
    outputs,
    over_heads,
    terms_of,
)
from tests.support.small_runs import small_config

NATURAL, ADVERSARIAL, NEGATIVE = outputs(0), outputs(1), outputs(2)
PAIR = NATURAL, ADVERSARIAL


def equation_over_heads(name):
    return over_heads(lambda p, q: EQUATIONS[name](p, q, LABELS), *PAIR)


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_loss_is_its_equation_over_all_heads(name):
    terms = terms_of(method_of(name), examples(), *PAIR)
    np.testing.assert_allclose(terms.loss, equation_over_heads(name), rtol=1e-5)
    # The heads' metrics make those of the terms.
    by_head = [one.removesuffix("_final") for one in terms.metrics if one.endswith("_final")]
    assert len(by_head) == {"natural": 1, "pgd_at": 1, "trades_s2o": 3}.get(name, 2)
    for term in by_head:
        final, *aux = (terms.metrics[f"{term}_{head}"] for head in ("final", "aux1", "aux2"))
        np.testing.assert_allclose(terms.metrics[term], final + 2 * np.mean(aux), rtol=1e-5)
    forwards = {"natural": [0], "pgd_at": [1]}.get(name, [0, 1])  # the natural images first
    assert [int(n) for n in terms.batch_stats] == forwards


@pytest.mark.parametrize("name", ["natural", "pgd_at", "trades"])
def test_label_smoothing_reaches_the_cross_entropy_of_every_head(name):
    method = method_of(name, method__label_smoothing=0.1, method__beta=0.0)
    terms = terms_of(method, examples(), *PAIR)
    classified = ADVERSARIAL if name == "pgd_at" else NATURAL
    expected = over_heads(lambda p: losses.cross_entropy(p, LABELS, 0.1), classified)
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)


class TestSelfAdaptive:
    method = method_of("sat", epochs=5, self_adaptive__start_epoch=3)

    def state(self):
        labels = jnp.arange(TRAINING, dtype=jnp.int32) % CLASSES
        return self.method.init_state(labels.at[INDICES].set(LABELS), CLASSES)

    def test_it_starts_from_one_hot_labels_of_all_examples(self):
        soft_labels = self.state()["soft_labels"]
        assert soft_labels.shape == (TRAINING, CLASSES)
        np.testing.assert_array_equal(soft_labels[INDICES], np.eye(CLASSES)[LABELS])

    def test_before_its_epoch_it_is_trades_and_labels_stay(self):
        terms = terms_of(self.method, examples(self.state(), epoch=1), *PAIR)
        expected = equation_over_heads("trades")
        np.testing.assert_allclose(terms.loss, expected, rtol=1e-6)
        np.testing.assert_array_equal(terms.state["soft_labels"], self.state()["soft_labels"])

    def test_from_its_epoch_the_batchs_labels_move_by_index_then_count(self):
        terms = terms_of(self.method, examples(self.state(), epoch=2), *PAIR)
        before, after = self.state()["soft_labels"], terms.state["soft_labels"]
        moved = 0.9 * before[INDICES] + 0.1 * jax.nn.softmax(NATURAL.logits)
        np.testing.assert_allclose(after[INDICES], moved, rtol=1e-6)
        others = np.setdiff1d(np.arange(TRAINING), INDICES)
        np.testing.assert_array_equal(after[others], before[others])

        def equation(p, q):
            return losses.self_adaptive_cross_entropy(p, moved) + 6 * losses.kl_divergence(p, q)

        expected = over_heads(equation, *PAIR)
        np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)


def with_negatives():
    extras = {
        "negatives": every_negative(BATCH),
        "negative_images": None,
        "negative_labels": LABELS,
    }
    return examples(extras=extras, attacked={"negative": images(2.0)})


@pytest.mark.parametrize("name", ["pgd_at", "mart", "trades"])
def test_ancra_adds_the_contrast_to_any_method(name):
    method = method_of(name, negative_contrast__zeta=3.0)
    terms = terms_of(method, with_negatives(), *PAIR, NEGATIVE)
    contrast = partial(losses.asymmetric_similarity, valid=jnp.ones(BATCH, bool), alpha=1.0)
    similarity = over_heads(contrast, NATURAL, NEGATIVE)
    assert similarity > 0
    alone = equation_over_heads(name)
    np.testing.assert_allclose(terms.loss, alone + 3 * similarity, rtol=1e-5)
    pairs = {"final": (NATURAL.logits, NEGATIVE.logits)}
    auxiliary = zip(NATURAL.aux_logits, NEGATIVE.aux_logits, strict=True)
    pairs |= {f"aux{k}": pair for k, pair in enumerate(auxiliary, start=1)}
    for head, (p, q) in pairs.items():
        matched = np.mean(np.argmax(p, axis=-1) == np.argmax(q, axis=-1))
        np.testing.assert_allclose(terms.metrics[f"negatives_matched_{head}"], matched, rtol=1e-6)
        similarity = terms.metrics[f"loss_negative_contrast_{head}"]
        np.testing.assert_allclose(similarity, contrast(p, q), rtol=1e-6)
    # PGD-AT gets a natural forward of the wrapper's own.
    order = [1, 0, 2] if name == "pgd_at" else [0, 1, 2]
    assert [int(n) for n in terms.batch_stats] == order


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_freezes_one_side_of_the_contrast_within_the_method(alpha):
    method = method_of("pgd_at", negative_contrast__zeta=3.0, negative_contrast__alpha=alpha)

    def loss(natural, negative):
        return terms_of(method, with_negatives(), natural, ADVERSARIAL, negative).loss

    to_natural, to_negative = jax.grad(loss, argnums=(0, 1))(NATURAL, NEGATIVE)
    frozen, free = (to_natural, to_negative) if alpha == 1 else (to_negative, to_natural)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen))
    assert np.any(free.logits) and np.any(free.aux_logits)


@pytest.mark.parametrize("from_batch", [False, True])
def test_the_contrast_on_true_labels_of_other_images_or_of_the_batchs_own(from_batch):
    zeta = {"negative_contrast__zeta": 3.0, "negative_contrast__true_labels": True}
    method = method_of("trades", **zeta, negative_contrast__from_batch=from_batch)
    positions = jnp.asarray([1, 2, 3, 4, 5, 0])
    batch = with_negatives()
    batch.extras["negatives"] = every_negative(BATCH)._replace(positions=positions)
    if from_batch:
        batch = examples(extras={"negatives": batch.extras["negatives"]})
    terms = terms_of(method, batch, *PAIR, NEGATIVE)
    negative = NEGATIVE
    if from_batch:
        negative = ADVERSARIAL._replace(
            logits=ADVERSARIAL.logits[positions], aux_logits=ADVERSARIAL.aux_logits[:, positions]
        )
    valid = jnp.ones(BATCH, bool)

    def contrast(p, q):
        return losses.true_class_similarity(p, q, LABELS, valid, 1.0)

    expected = equation_over_heads("trades") + 3 * over_heads(contrast, NATURAL, negative)
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)
    assert len(terms.batch_stats) == (2 if from_batch else 3)


def test_negatives_of_the_batch_are_planned_without_an_attack_of_their_own():
    def model(images):
        return NATURAL

    attacks_of = {}
    for name in ("trades_batch_anc", "trades_true_anc"):
        plan = method_of(name).prepare(model, examples().batch, jax.random.key(0), jnp.asarray(0))
        attacks_of[name] = set(plan.requests)
        chosen = plan.extras["negatives"].positions
        assert np.all(LABELS[chosen] != LABELS)
    expected = {"trades_batch_anc": {"adversarial"}}
    assert attacks_of == expected | {"trades_true_anc": {"adversarial", "negative"}}


@pytest.mark.parametrize("name", ["pgd_at", "trades"])
def test_margin_alignment_is_added_to_any_method(name):
    rows = jax.random.normal(jax.random.key(8), (CLASSES, 3))
    pair = [
        one._replace(features=jax.random.normal(jax.random.key(k), (BATCH, 3)), class_rows=rows)
        for k, one in enumerate(PAIR)
    ]
    method = method_of(name, margin_alignment__weight=2.0)
    terms = terms_of(method, examples(), *pair)
    expected = equation_over_heads(name) + 2 * losses.margin_alignment(*pair, LABELS)
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)
    # PGD-AT gets a natural forward of the wrapper's own, and ANC takes the same one.
    assert [int(n) for n in terms.batch_stats] == ([1, 0] if name == "pgd_at" else [0, 1])
    method = method_of(name, margin_alignment__weight=2.0, negative_contrast__zeta=3.0)
    batch_stats = terms_of(method, with_negatives(), *pair, pair[0]).batch_stats
    assert len(batch_stats) == 3
    with pytest.raises(UsageError, match=r"margin_alignment\.weight=2\.0: .*class_rows"):
        terms_of(method_of(name, margin_alignment__weight=2.0), examples(), *PAIR)


def test_random_masks_are_of_any_class_and_leave_the_loss_its_labels():
    plain, method = method_of("trades_ra"), method_of("trades_ra_random")
    model = lambda images: NATURAL  # noqa: E731
    seen, drawn = [], []

    def forward(batch_stats, images, labels):
        seen.append(labels)
        return (ADVERSARIAL if images[0, 0, 0, 0] else NATURAL), batch_stats

    for step in range(100):
        key = jax.random.key(step)
        plan = method.prepare(model, examples().batch, key, jnp.asarray(0))
        drawn.append(mask_classes(plan.extras, LABELS))
    counts = np.bincount(np.ravel(drawn), minlength=CLASSES)
    assert np.abs(counts - 150).max() < 50  # of 600, five standard deviations
    first = np.asarray(drawn)[:, 0]
    assert np.abs(np.bincount(first, minlength=CLASSES) - 25).max() < 22
    batch = examples(extras=plan.extras)
    terms = method.loss(forward, [], batch)
    np.testing.assert_array_equal(seen, [drawn[-1]] * 2)
    np.testing.assert_allclose(terms.loss, plain.loss(forward, [], batch).loss, rtol=1e-6)
    np.testing.assert_array_equal(seen[2:], [LABELS] * 2)


class TestDistillation:
    settings = {"distillation__weight": 0.3, "distillation__teacher": "run"}  # noqa: RUF012
    teacher = 3 * jax.random.normal(jax.random.key(5), (BATCH, CLASSES))

    def in_numpy(self, student):
        """``T^2 KL(teacher || student)`` in float64, for ``T = 4``."""
        p, q = (np.exp(np.float64(logits) / 4) for logits in (self.teacher, student))
        p, q = (values / values.sum(axis=1, keepdims=True) for values in (p, q))
        return 16 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))

    @pytest.mark.parametrize(
        ("name", "student"),
        [("natural", NATURAL), ("pgd_at", ADVERSARIAL), ("trades", ADVERSARIAL)],
    )
    def test_it_is_added_on_the_forward_under_attack(self, name, student):
        batch = examples(teacher_logits=self.teacher)
        alone = terms_of(method_of(name), batch, *PAIR)
        terms = terms_of(method_of(name, **self.settings), batch, *PAIR)
        term = over_heads(self.in_numpy, student)
        np.testing.assert_allclose(terms.metrics["loss_distillation"], term, rtol=1e-5)
        np.testing.assert_allclose(terms.loss, 0.7 * alone.loss + 0.3 * term, rtol=1e-5)
        assert len(terms.batch_stats) == len(alone.batch_stats)  # no forward of its own

    def test_the_teacher_is_frozen_and_the_student_is_not(self):
        method = method_of("trades", **self.settings)

        def loss(weights, student):
            batch = examples(teacher_logits=weights * self.teacher)
            return terms_of(method, batch, NATURAL, student).loss

        gradient = jax.grad(loss, argnums=(0, 1))
        to_teacher, to_student = gradient(jnp.full(CLASSES, 2.0), ADVERSARIAL)
        assert not np.any(to_teacher)
        assert np.any(to_student.logits) and np.any(to_student.aux_logits)

    def test_what_it_cannot_do_without_is_named(self):
        with pytest.raises(UsageError, match=r"config\.distillation\.weight=0\.3: .*teacher"):
            terms_of(method_of("natural", **self.settings), examples(), *PAIR)

        def loss(forward, batch_stats, examples):
            return Terms(jnp.ones(()), batch_stats, None, {}, examples.state)

        config = small_config("natural", **self.settings)
        silent = method_of("natural")._replace(loss=loss)
        silent = distillation(silent, config, attack_settings(config))
        with pytest.raises(UsageError, match=r"config\.distillation\.weight=0\.3: .*Terms"):
            terms_of(silent, examples(teacher_logits=self.teacher), *PAIR)


class TestImprovedKL:
    """IKL's means of the classes, and DKL, which is TRADES taken apart."""

    def test_dkl_has_the_gradient_of_trades(self):
        options = {"symmetric": False, "class_means": False, "mse_weight": 6.0, "ce_weight": 6.0}
        methods = method_of("ikl", method__options=options), method_of("trades")
        batch = examples()

        def gradient(method):
            return jax.jit(jax.grad(lambda pair: terms_of(method, batch, *pair).loss))(PAIR)

        for found, expected in zip(*map(jax.tree.leaves, map(gradient, methods)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def test_means_of_an_epoch_are_the_weights_of_the_next(self):
        method = method_of("ikl")
        state = method.init_state(jnp.zeros(TRAINING, jnp.int32), CLASSES)
        uniform = np.full((CLASSES, CLASSES), 1 / CLASSES)
        first = terms_of(method, examples(state), *PAIR)
        self.check(first, uniform)
        seen = np.float64(jax.nn.softmax(NATURAL.logits / 4))
        sums = np.stack([seen[np.asarray(LABELS) == label].sum(0) for label in range(CLASSES)])
        np.testing.assert_allclose(first.state["ikl"]["sums"], sums, rtol=1e-5)
        second = terms_of(method, examples(first.state, epoch=1), *PAIR)
        self.check(second, sums / sums.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(second.state["ikl"]["sums"], sums, rtol=1e-5)  # begun anew

    def test_a_class_that_was_not_seen_keeps_its_mean(self):
        method = method_of("ikl")
        state = method.init_state(jnp.zeros(TRAINING, jnp.int32), CLASSES)
        terms = terms_of(method, examples(state, epoch=1), *PAIR)
        np.testing.assert_allclose(terms.state["ikl"]["means"], 1 / CLASSES, rtol=1e-6)

    def check(self, terms, means):
        weights = jnp.asarray(means, jnp.float32)[LABELS]

        def equation(p, q):
            soft = losses.soft_cross_entropy(p, q)
            mse = losses.logit_differences(p, q, weights)
            return losses.cross_entropy(p, LABELS) + 4 * soft + 20 * mse

        np.testing.assert_allclose(terms.loss, over_heads(equation, *PAIR), rtol=1e-5)


@pytest.mark.parametrize(("name", "beta"), [("pgd_at_adr", 0), ("trades_adr", 6)])
def test_rectified_labels_take_the_place_of_the_classes(name, beta):
    options = {"temperature": (2.0, 1.0), "interpolation": (0.6, 0.9)}
    method = method_of(name, epochs=4, ema__decay=0.9, method__options=options)
    averaged = outputs(7)
    soft = method.soft_labels(lambda images: averaged, examples().batch, jnp.asarray(1.0))
    wave = (1 + np.cos(np.pi / 4)) / 2  # after one of four epochs
    temperature, interpolation = 1.0 + wave, 0.9 - 0.3 * wave
    expected = losses.rectified_labels(averaged.logits, LABELS, temperature, interpolation)
    np.testing.assert_allclose(soft, expected, rtol=1e-5)

    def equation(p, q):
        classified = p if name == "trades_adr" else q
        return losses.cross_entropy(classified, soft) + beta * losses.kl_divergence(p, q)

    terms = terms_of(method, examples()._replace(soft_labels=soft), *PAIR)
    np.testing.assert_allclose(terms.loss, over_heads(equation, *PAIR), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema__decay": 0.0}, r"ema\.decay=0\.0: .*pgd_at_adr"),
        ({"method__options": {"temperature": (1.0, 0.0)}}, r"temperature=\(1\.0, 0\.0\)"),
        ({"method__options": {"interpolation": (0.5,)}}, r"interpolation=\(0\.5,\)"),
    ],
)
def test_rectification_names_what_it_cannot_do_with(settings, message):
    with pytest.raises(UsageError, match=message):
        method_of("pgd_at_adr", **settings)


def test_the_attack_ascends_the_cross_entropy_to_soft_labels():
    """Of the natural images; other requests, here one that descends, keep their classes."""
    weights = jax.random.normal(jax.random.key(1), (3, 4, CLASSES))
    settings = attack_settings(small_config("pgd_at_ancra"))

    def model(images):
        heads = jnp.einsum("bd,hdc->hbc", images.reshape(BATCH, 4), weights)
        return Outputs(heads[0], heads[1:], heads[0])

    batch = jax.random.uniform(jax.random.key(2), (BATCH, 2, 2, 1))
    soft = jax.nn.softmax(outputs(3).logits).at[0].set(jax.nn.one_hot(2, CLASSES))
    keys = jax.random.split(jax.random.key(0), BATCH)
    requests = {
        name: AttackRequest(settings, batch, LABELS, name == "negative", keys)
        for name in ("adversarial", "negative")
    }
    softened = Plan(requests, {}).softened(soft).requests
    expected = {"adversarial": soft, "negative": jax.nn.one_hot(LABELS, CLASSES)}
    for name, sign in (("adversarial", 1.0), ("negative", -1.0)):
        objective = signed_objective(
            model, settings, batch, softened[name].labels, jnp.full(BATCH, sign)
        )

        def loss(images, name=name):
            term = lambda logits: losses.cross_entropy(logits, expected[name])  # noqa: E731
            return losses.combined(term, model(images), aux_weight=settings.aux_weight)

        found = jax.jit(jax.grad(lambda images: objective(images).mean()))(batch)  # noqa: B023
        expectation = sign * jax.jit(jax.grad(loss))(batch)
        np.testing.assert_allclose(found, expectation, rtol=1e-4, atol=1e-6)


class TestHelper:
    """HAT."""

    def test_helpers_lie_beyond_the_adversarial_images_and_have_the_teachers_classes(self):
        method = method_of("hat")
        of_adversarial, helper = outputs(5), outputs(2)

        def teacher(images):
            assert float(images[0, 0, 0, 0]) == 1.0  # the adversarial image
            return of_adversarial

        terms = terms_of(method, examples()._replace(teacher=teacher), *PAIR, helper)
        classes = jnp.argmax(of_adversarial.logits, axis=-1)
        trades = over_heads(
            lambda p, q: losses.cross_entropy(p, LABELS) + 2.5 * losses.kl_divergence(p, q), *PAIR
        )
        helping = over_heads(lambda logits: losses.cross_entropy(logits, classes), helper)
        np.testing.assert_allclose(terms.loss, trades + 0.5 * helping, rtol=1e-5)
        # x = 0 and x_adv = 1, so that x + 2 (x_adv - x) = 2: the third forward.
        assert [int(n) for n in terms.batch_stats] == [0, 1, 2]

    def test_it_needs_a_teacher(self):
        with pytest.raises(UsageError, match=r"'hat': .*teacher"):
            terms_of(method_of("hat"), examples(), *PAIR)
        problems = Problems()
        build.check(small_config("hat"), problems)
        with pytest.raises(UsageError, match=r"--config\.distillation\.teacher=''"):
            problems.raise_all()
