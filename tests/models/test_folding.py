"""Folded batch normalisation: the same numbers, computed before the loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import attacks, models
from ancra_jax.models.resnet import BasicBlock, ResNet18
from ancra_jax.ops.pytree import Foldable, fold, pytree_dataclass
from tests.support.reference_weights import random_variables

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 3)), jnp.float32)
LABELS = jnp.arange(4)


def network_and_variables(name, **options):
    network = models.create(name, num_classes=5, width=4, **options)
    return network, random_variables(network, IMAGES.shape[1:])


@pytest.mark.parametrize(
    ("name", "reverse_attention", "left"),
    [
        ("resnet18", True, 0),
        ("resnet50", False, 0),
        ("dm_preact_resnet18", True, 9),
        ("wide_resnet16_1", False, 7),
    ],
)
def test_folded_network_has_the_same_outputs(name, reverse_attention, left):
    network, variables = network_and_variables(name, reverse_attention=reverse_attention)
    folded = models.folded(network, variables)
    scales = [
        path for path, _ in jax.tree.leaves_with_path(folded["folded"]) if "scale" in str(path)
    ]
    assert "batch_stats" not in folded and len(scales) == left
    assert models.folded(network, folded) is folded

    run = jax.jit(network.apply)
    pairs = zip(run(variables, IMAGES), run(folded, IMAGES), strict=True)
    for expected, found in pairs:
        scale = np.abs(expected).max(initial=1e-30)
        error = np.abs(found - expected) / scale
        # No more than float32 rounds in either: folding in float64 differs as much from both.
        assert error.max(initial=0) <= 2e-6
        assert np.sqrt(np.sum(error**2) / max(error.size, 1)) <= 1e-6
    with pytest.raises(Exception, match="scale"):
        network.apply(folded, IMAGES, LABELS, train=True)


class OtherBlock(BasicBlock):
    """A block of somebody else: what follows its convolutions is not known."""


class Other(ResNet18):
    """A network of such blocks."""

    block = OtherBlock


def test_networks_of_other_blocks_stay_as_they_are():
    network = Other(num_classes=5, width=4)
    variables = random_variables(network, IMAGES.shape[1:])
    assert models.folded(network, variables) is variables


def test_loops_of_attacks_neither_normalise_nor_turn_kernels():
    network, variables = network_and_variables("wide_resnet10_1")

    def attack(apply, variables):
        objective = attacks.objectives.cross_entropy(apply(variables), LABELS)
        ball = attacks.Linf(0.1)
        return attacks.ascend(objective, IMAGES, IMAGES, ball, step_size=0.02, num_steps=3)

    def found_in_the_loop(apply):
        equations = jax.make_jaxpr(lambda v: attack(apply, v))(variables).eqns
        (loop,) = [one for one in inner(equations) if one.primitive.name in ("while", "scan")]
        return {name for name in ("rsqrt", "rev") if re.search(rf"\b{name}\b", str(loop))}

    def inner(equations):
        for equation in equations:
            called = equation.params.get("jaxpr") if equation.primitive.name == "jit" else None
            yield from inner(called.eqns) if called is not None else [equation]

    def bound(variables):
        return models.BoundNetwork(network, variables)

    def plain(variables):
        return jax.tree_util.Partial(network.apply, variables)

    assert found_in_the_loop(plain) == {"rsqrt", "rev"} and not found_in_the_loop(bound)
    expected, found = (jax.jit(attack, static_argnums=0)(f, variables) for f in (plain, bound))
    # A sign of a gradient that is nearly 0 may turn.
    assert np.mean(np.abs(expected - found) > 1e-6) < 0.01


@pytree_dataclass()
class Lying(Foldable):
    """A linear model whose cheaper form sees another class everywhere."""

    kernel: jax.Array

    def __call__(self, images):
        return images.reshape(len(images), -1) @ self.kernel

    def folded(self):
        return Lying(-self.kernel)


def test_success_is_the_word_of_the_network_itself():
    kernel = np.random.default_rng(0).normal(size=(IMAGES[0].size, 5))
    model = Lying(jnp.asarray(kernel, jnp.float32))
    labels = np.asarray(model(IMAGES).argmax(axis=-1), np.int32)
    assert (fold({"model": model})["model"](IMAGES).argmax(axis=-1) != labels).all()
    for attack in (attacks.fab, attacks.square):
        budget = {"num_queries": 5} if attack is attacks.square else {"num_steps": 2}
        found = attack(model, IMAGES, labels, attacks.Linf(1e-4), key=0, **budget)
        assert not found.success.any()
    assert found.denied.all()  # Square believed the other form
