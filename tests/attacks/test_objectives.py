from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax.attacks import objectives
from ancra_jax.types import Outputs

LOGITS = jnp.array([[2.0, -1.0, 0.5, 3.0, 1.0], [0.1, 0.2, 0.7, -0.4, 0.3]])
LABELS = jnp.array([0, 2])
TARGETS = jnp.array([1, 4])
IMAGES = jnp.zeros((2, 1, 1, 1))


def constant(logits):
    """A model that says the same of any image."""
    return jax.tree_util.Partial(lambda z, images: z, logits)


def test_closed_forms():
    model = constant(LOGITS)
    log_p = jax.nn.log_softmax(LOGITS)

    def close(objective, expected):
        np.testing.assert_allclose(objective(IMAGES), expected, rtol=1e-6)

    def also_by_name(name, make, classes, expected):
        close(make(model, *classes), expected)
        targets = TARGETS if name.startswith("targeted") else None
        close(objectives.objective_of(name, model, LABELS, targets), expected)

    both, o = (LABELS, TARGETS), objectives
    also_by_name("ce", o.cross_entropy, (LABELS,), [-log_p[0, 0], -log_p[1, 2]])
    also_by_name("targeted_ce", o.targeted_cross_entropy, (TARGETS,), [log_p[0, 1], log_p[1, 4]])
    also_by_name("margin", o.margin, (LABELS,), [1.0, -0.4])
    also_by_name("targeted_margin", o.targeted_margin, both, [-3.0, -0.4])
    also_by_name("dlr", o.dlr, (LABELS,), [1.0 / (3 - 1), -0.4 / (0.7 - 0.2)])
    targeted_dlr = [-3.0 / (3 - (1 + 0.5) / 2), -0.4 / (0.7 - (0.2 + 0.1) / 2)]
    also_by_name("targeted_dlr", o.targeted_dlr, both, targeted_dlr)
    reference = LOGITS[:, ::-1]
    log_q = jax.nn.log_softmax(reference)
    close(objectives.kl_divergence(model, reference), jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1))


def test_dlr_ignores_shift_and_scale():
    plain = objectives.dlr(constant(LOGITS), LABELS)(IMAGES)
    moved = objectives.dlr(constant(7 * LOGITS - 3), LABELS)(IMAGES)
    np.testing.assert_allclose(plain, moved, rtol=1e-5)


def test_dlr_gradient_flows_through_the_denominator():
    def value(z):
        return objectives.dlr(constant(z), LABELS[:1])(IMAGES[:1])[0]

    gradient = jax.grad(value)(LOGITS[:1])[0]
    # z = (2, -1, .5, 3, 1), y = 0: value (3 - 2) / (3 - 1), where the 1 is the third largest.
    np.testing.assert_allclose(gradient, [-0.5, 0, 0, 0.5 - 0.25, 0.25], atol=1e-6)


@pytest.mark.parametrize(("name", "classes"), [("dlr", 2), ("targeted_dlr", 3)])
def test_too_few_classes_are_refused(name, classes):
    model = constant(LOGITS[:, :classes])
    operands = (LABELS, TARGETS)[: 2 if name == "targeted_dlr" else 1]
    with pytest.raises(ValueError, match=f"needs at least {classes + 1} classes"):
        getattr(objectives, name)(model, *operands)(IMAGES)


class TwoFields(NamedTuple):
    logits: jax.Array
    aux_logits: jax.Array


@pytest.mark.parametrize("make", [TwoFields, lambda z, a: Outputs(z, a, z)])
def test_auxiliary_heads(make):
    heads = jnp.stack([LOGITS[::-1], 2 * LOGITS, -LOGITS])
    model = jax.tree_util.Partial(lambda z, a, images: make(z, a), LOGITS, heads)
    for objective in (objectives.cross_entropy, objectives.margin, objectives.dlr):

        def alone(logits, objective=objective):
            return objective(constant(logits), LABELS)(IMAGES)

        expected = alone(LOGITS) + 2.0 * (sum(alone(h) for h in heads) / 3)
        np.testing.assert_allclose(objective(model, LABELS, 2.0)(IMAGES), expected, rtol=1e-5)
        np.testing.assert_allclose(objective(model, LABELS)(IMAGES), alone(LOGITS))
    shuffled = make(LOGITS[::-1], heads[::-1])
    expected = objectives.kl_divergence(constant(LOGITS), LOGITS[::-1])(IMAGES) + 2.0 * jnp.mean(
        jnp.stack(
            [
                objectives.kl_divergence(constant(heads[i]), heads[::-1][i])(IMAGES)
                for i in range(len(heads))
            ]
        ),
        axis=0,
    )
    np.testing.assert_allclose(
        objectives.kl_divergence(model, shuffled, 2.0)(IMAGES), expected, rtol=1e-5
    )


def test_no_heads_means_the_term_alone():
    model = jax.tree_util.Partial(lambda z, images: Outputs(z, jnp.zeros((0, *z.shape)), z), LOGITS)
    np.testing.assert_array_equal(
        objectives.margin(model, LABELS, 2.0)(IMAGES), objectives.margin(model, LABELS)(IMAGES)
    )
    assert objectives.combine_heads(jnp.sum, LOGITS, jnp.zeros((0, 2, 5)), 2.0) == jnp.sum(LOGITS)


def test_half_precision_logits_are_judged_in_float32():
    value = objectives.cross_entropy(constant(LOGITS.astype(jnp.bfloat16)), LABELS)(IMAGES)
    assert value.dtype == jnp.float32
