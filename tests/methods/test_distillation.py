"""Distillation's term, what it is made of, and that the teacher is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks, losses
from ancra_jax.errors import UsageError
from ancra_jax.methods import AttackSettings
from ancra_jax.methods import standard as base
from ancra_jax.methods.core import Terms
from ancra_jax.methods.distillation import distillation
from tests.support.method_parts import (
    BATCH,
    CLASSES,
    LABELS,
    examples,
    forward_of,
    images,
    outputs,
    over_heads,
)

SETTINGS = AttackSettings("cross_entropy", attacks.Linf(8 / 255), 0.007, 1, "gaussian", 2.0)
NATURAL, ADVERSARIAL = outputs(0), outputs(1)
TEACHER = 3 * jax.random.normal(jax.random.key(5), (BATCH, CLASSES))
WEIGHT, TEMPERATURE = 0.3, 4.0


def distilled(method):
    return distillation(method, weight=WEIGHT, temperature=TEMPERATURE, aux_weight=2.0)


def loss_of(method, teacher=TEACHER, natural=NATURAL, adversarial=ADVERSARIAL):
    batch = examples()._replace(teacher_logits=teacher)
    return method.loss(forward_of(natural, adversarial), [], batch)


def in_numpy(student):
    """``T^2 KL(teacher || student)`` in float64."""

    def softmax(logits):
        exponents = np.exp(np.float64(logits) / TEMPERATURE)
        return exponents / exponents.sum(axis=1, keepdims=True)

    p, q = softmax(TEACHER), softmax(student)
    return TEMPERATURE**2 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))


def test_the_term_is_the_papers():
    term = losses.distillation(NATURAL.logits, TEACHER, TEMPERATURE)
    np.testing.assert_allclose(term, in_numpy(NATURAL.logits), rtol=1e-5)
    assert abs(losses.distillation(TEACHER, TEACHER, TEMPERATURE)) < 1e-5


@pytest.mark.parametrize(
    ("method", "student"),
    [
        (base.natural(2.0), NATURAL),
        (base.pgd_at(SETTINGS, 2.0), ADVERSARIAL),
        (base.trades(SETTINGS, 6.0, 2.0), ADVERSARIAL),
    ],
    ids=["natural", "pgd_at", "trades"],
)
def test_it_is_added_on_the_forward_under_attack(method, student):
    alone, terms = loss_of(method), loss_of(distilled(method))
    term = over_heads(in_numpy, student, aux_weight=2.0)
    np.testing.assert_allclose(terms.metrics["loss_distillation"], term, rtol=1e-5)
    np.testing.assert_allclose(terms.loss, 0.7 * alone.loss + 0.3 * term, rtol=1e-5)
    assert len(terms.batch_stats) == len(alone.batch_stats)  # no forward of its own


def test_the_teacher_is_frozen_and_the_student_is_not():
    method = distilled(base.trades(SETTINGS, 6.0, 2.0))

    def loss(weights, student):
        return loss_of(method, weights * TEACHER, adversarial=student).loss

    to_teacher, to_student = jax.grad(loss, argnums=(0, 1))(jnp.full(CLASSES, 2.0), ADVERSARIAL)
    assert not np.any(to_teacher)
    assert np.any(to_student.logits) and np.any(to_student.aux_logits)


def test_what_it_cannot_do_without_is_named():
    with pytest.raises(UsageError, match=r"distillation\.weight=0\.3: the step was given no teac"):
        loss_of(distilled(base.natural(2.0)), teacher=None)

    def loss(forward, batch_stats, examples):
        value = losses.cross_entropy(forward(batch_stats, images(0.0), LABELS)[0].logits, LABELS)
        return Terms(value, batch_stats, None, {}, examples.state)

    silent = base.natural(2.0)._replace(loss=loss)
    with pytest.raises(UsageError, match=r"needs a method whose loss says what"):
        loss_of(distilled(silent))
