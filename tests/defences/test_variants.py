"""What networks without the paper's hard masks declare, and that it attacks them."""

import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax import attacks
from ancra_jax.attacks import objectives
from ancra_jax.defences import declared
from tests.support.reference_weights import random_variables
from tests.support.small_runs import TinyNetwork

SHAPE = (8, 8, 1)
IMAGES = jax.random.uniform(jax.random.key(0), (12, *SHAPE))
VARIANTS = {
    "soft_attention": {"reverse_attention": True, "attention": "soft", "temperature": 0.5},
    "class_branches": {"last_block": "class_branches"},
}


def network(variant):
    """A random network whose logits are 0 on average, its defence, and what it predicts."""
    module = TinyNetwork(num_classes=5, width=4, **VARIANTS[variant])
    variables = random_variables(module, SHAPE)
    layer = variables["params"]["fc"]
    for _ in range(3):
        predict = jax.tree_util.Partial(module.apply, variables)
        logits = predict(IMAGES).logits
        layer["bias"] = layer["bias"] - logits.mean(axis=0)
    (defence,) = declared(module, predict)
    assert defence.name == variant
    return defence, predict, jnp.argmax(logits, axis=-1)


@jax.jit
def value_and_gradient(objective, images):
    return objective(images), jax.grad(lambda images: objective(images).sum())(images)


def test_soft_attention_is_attacked_through_its_own_masks():
    defence, predict, labels = network("soft_attention")
    assert {"A1", "A2", "A5"} <= {attack.group for attack in defence.attacks}
    (joint,) = [one for one in defence.attacks if one.name == "a4-joint-2-cross_entropy"]
    found = value_and_gradient(joint.objective(labels, None), IMAGES)
    expected = value_and_gradient(objectives.cross_entropy(predict, labels, aux_weight=2.0), IMAGES)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_class_branches_are_attacked_by_their_own_gradient_and_without():
    defence, predict, labels = network("class_branches")
    budget = attacks.AdaptiveBudget(5, 2, 1, 8, exhaustive=True)
    found = attacks.adaptive(
        predict, IMAGES, labels, epsilon=0.2, defences=[defence], budget=budget, progress=None
    )
    names = {"b1-branches-ce", "b1-branches-margin", "b1-branches-targeted_margin"}
    assert {record.name for record in found.records} == names | {"b2-square-margin"}
    assert found.robust_accuracy < 1
    judged = attacks.is_adversarial(predict, found.images, IMAGES, labels, attacks.Linf(0.2))
    np.testing.assert_array_equal(judged, ~found.robust)
