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


LOG_P = jax.nn.log_softmax(LOGITS)
CLOSED_FORMS = {
    "ce": [-LOG_P[0, 0], -LOG_P[1, 2]],
    "targeted_ce": [LOG_P[0, 1], LOG_P[1, 4]],
    "margin": [1.0, -0.4],
    "targeted_margin": [-3.0, -0.4],
    # Both DLRs ignore shift and scale of the logits.
    "dlr": [1.0 / (3 - 1), -0.4 / (0.7 - 0.2)],
    "targeted_dlr": [-3.0 / (3 - (1 + 0.5) / 2), -0.4 / (0.7 - (0.2 + 0.1) / 2)],
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name):
    targets = TARGETS if name.startswith("targeted") else None
    for logits in (LOGITS, 7 * LOGITS - 3) if "dlr" in name else (LOGITS,):
        objective = objectives.objective_of(name, constant(logits), LABELS, targets)
        np.testing.assert_allclose(objective(IMAGES), CLOSED_FORMS[name], rtol=1e-5)


def test_usual_losses_are_one_program_whatever_the_number_of_classes():
    evaluate = jax.jit(lambda objective, images: objective(images))
    usual = {
        2: {"ce", "margin", "targeted_margin"},
        3: {"dlr"},
        5: {*CLOSED_FORMS} - {"targeted_ce"},
    }
    for classes, names in usual.items():
        model, structures = constant(LOGITS[:, :classes]), set()
        for name in names:
            targets = 1 - LABELS // 2 if name.startswith("targeted") else None
            objective = objectives.objective_of(name, model, LABELS // 2, targets)
            shared = objectives.in_one_program(objective)
            np.testing.assert_array_equal(evaluate(shared, IMAGES), objective(IMAGES))
            structures.add(jax.tree.structure(shared))
        assert len(structures) == 1


def test_kl_divergence():
    log_q = jax.nn.log_softmax(LOGITS[:, ::-1])
    objective = objectives.kl_divergence(constant(LOGITS), LOGITS[:, ::-1])
    expected = jnp.sum(jnp.exp(log_q) * (log_q - LOG_P), -1)
    np.testing.assert_allclose(objective(IMAGES), expected, rtol=1e-6)


def test_dlr_gradient_flows_through_the_denominator():
    def value(z):
        return objectives.dlr(constant(z), LABELS[:1])(IMAGES[:1])[0]

    gradient = jax.grad(value)(LOGITS[:1])[0]
    # z = (2, -1, .5, 3, 1), y = 0: value (3 - 2) / (3 - 1), where the 1 is the third largest.
    np.testing.assert_allclose(gradient, [-0.5, 0, 0, 0.5 - 0.25, 0.25], atol=1e-6)


@pytest.mark.parametrize(("name", "classes"), [("dlr", 2), ("targeted_dlr", 3)])
def test_too_few_classes_are_refused(name, classes):
    model = constant(LOGITS[:, :classes])
    operands = [x % classes for x in (LABELS, TARGETS)][: 2 if name == "targeted_dlr" else 1]
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
    kl, pairs = objectives.kl_divergence, zip(heads, heads[::-1], strict=True)
    expected = kl(constant(LOGITS), LOGITS[::-1])(IMAGES) + 2.0 * (
        sum(kl(constant(head), reference)(IMAGES) for head, reference in pairs) / 3
    )
    shuffled = make(LOGITS[::-1], heads[::-1])
    np.testing.assert_allclose(kl(model, shuffled, 2.0)(IMAGES), expected, rtol=1e-5)


def test_no_heads_means_the_term_alone():
    model = jax.tree_util.Partial(lambda z, images: Outputs(z, jnp.zeros((0, *z.shape)), z), LOGITS)
    np.testing.assert_array_equal(
        objectives.margin(model, LABELS, 2.0)(IMAGES), objectives.margin(model, LABELS)(IMAGES)
    )
    assert objectives.combine_heads(jnp.sum, LOGITS, jnp.zeros((0, 2, 5)), 2.0) == jnp.sum(LOGITS)


def test_half_precision_logits_are_judged_in_float32():
    value = objectives.cross_entropy(constant(LOGITS.astype(jnp.bfloat16)), LABELS)(IMAGES)
    assert value.dtype == jnp.float32
