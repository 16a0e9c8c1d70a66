"""Reverse attention (paper eq. 6) against its equation, and its hook for other masks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax import models
from ancra_jax.models.layers import Linear
from ancra_jax.models.reverse_attention import SoftAttention, class_branches, reverse_attention
from tests.support.reference_weights import random_variables
from tests.support.small_runs import TinyNetwork

BATCH, CLASSES, CHANNELS = 4, 3, 5


def example(height=4, width=4, rows=1, columns=1, seed=0):
    """A non-negative feature map and a linear layer for its pooled cells."""
    rng = np.random.default_rng(seed)
    feature_map = np.abs(rng.normal(size=(BATCH, height, width, CHANNELS)))
    kernel = rng.normal(size=(CHANNELS * rows * columns, CLASSES))
    bias = rng.normal(size=CLASSES)
    linear = Linear(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))
    return jnp.asarray(feature_map, jnp.float32), linear


@pytest.mark.parametrize("labels", [jnp.asarray([2, 0, 1, 2]), None])
def test_the_mask_is_the_row_of_the_label_or_of_the_auxiliary_prediction(labels):
    feature_map, linear = example(seed=1)
    attended = reverse_attention(feature_map, linear, labels, window=4)
    pooled = feature_map.mean((1, 2))
    np.testing.assert_allclose(attended.pooled, pooled, rtol=1e-6)
    logits = pooled @ linear.kernel + linear.bias
    np.testing.assert_allclose(attended.aux_logits, logits, rtol=1e-5, atol=1e-6)
    classes = logits.argmax(axis=-1) if labels is None else labels
    assert len(set(classes.tolist())) > 1
    expected = feature_map * linear.kernel.T[classes][:, None, None]
    np.testing.assert_allclose(attended.feature_map, expected, rtol=1e-6)


def test_several_cells_are_channel_major_and_upsampled_to_the_nearest():
    feature_map, linear = example(height=8, width=4, rows=2, columns=1, seed=2)
    labels = jnp.asarray([1, 1, 0, 2])
    attended = reverse_attention(feature_map, linear, labels, window=4)
    rows = np.asarray(linear.kernel).T.reshape(CLASSES, CHANNELS, 2, 1)
    mask = rows[np.asarray(labels)].repeat(4, axis=2).repeat(4, axis=3).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(attended.feature_map, feature_map * mask, rtol=1e-6)
    cells = np.asarray(feature_map).reshape(BATCH, 2, 4, 4, CHANNELS).mean((2, 3))
    features = cells.transpose(0, 2, 1).reshape(BATCH, -1)
    np.testing.assert_allclose(attended.pooled, features, rtol=1e-6)


def test_a_map_that_its_windows_do_not_fill():
    # Rows 0..8 of nine with two cells: PyTorch's nearest neighbour is floor(i * 2 / 9).
    feature_map, linear = example(height=9, width=4, rows=2, columns=1, seed=3)
    attended = reverse_attention(feature_map, linear, jnp.zeros(BATCH, int), window=4)
    rows = np.asarray(linear.kernel)[:, 0].reshape(CHANNELS, 2)
    mask = rows[:, [0, 0, 0, 0, 0, 1, 1, 1, 1]].T[None, :, None]
    np.testing.assert_allclose(attended.feature_map, feature_map * mask, rtol=1e-6)


def test_the_kernel_is_not_detached_but_its_choice_has_no_gradient():
    feature_map, linear = example(seed=4)
    labels = jnp.asarray([2, 0, 1, 2])

    def weighted_sum(kernel):
        layer = linear._replace(kernel=kernel)
        return reverse_attention(feature_map, layer, labels, window=4).feature_map.sum()

    expected = np.zeros((CHANNELS, CLASSES), np.float32)
    for i, label in enumerate([2, 0, 1, 2]):
        expected[:, label] += feature_map[i].sum((0, 1))
    np.testing.assert_allclose(jax.grad(weighted_sum)(linear.kernel), expected, rtol=1e-5)

    def through_the_prediction(bias):
        layer = linear._replace(bias=bias)
        return reverse_attention(feature_map, layer, None, window=4).feature_map.sum()

    np.testing.assert_array_equal(jax.grad(through_the_prediction)(linear.bias), 0)


def test_the_weighted_map_keeps_the_compute_dtype():
    feature_map, linear = example(seed=5)
    attended = reverse_attention(feature_map.astype(jnp.bfloat16), linear, None, window=4)
    assert attended.feature_map.dtype == jnp.bfloat16
    assert attended.aux_logits.dtype == attended.pooled.dtype == jnp.float32


class ForcedClasses(NamedTuple):
    """Forces one class per block: a rule that is a pytree."""

    classes: jax.Array

    def __call__(self, aux_logits, class_rows, labels, block):
        return jnp.tile(class_rows[self.classes[block]], (len(aux_logits), 1))


def test_another_rule_goes_through_the_network_without_compiling_again():
    network = models.create("wide_resnet16_1", num_classes=CLASSES, width=4, reverse_attention=True)
    images = jax.random.uniform(jax.random.key(0), (BATCH, 8, 8, 1))
    variables = random_variables(network, (8, 8, 1))
    traces = []

    @jax.jit
    def apply(variables, images, attention):
        traces.append(1)
        outputs, kept = network.apply(
            variables, images, attention=attention, mutable=["intermediates"]
        )
        return outputs, kept["intermediates"]["pooled"]

    outputs, pooled = apply(variables, images, ForcedClasses(jnp.asarray([0, 1])))
    other, _ = apply(variables, images, ForcedClasses(jnp.asarray([2, 1])))
    assert len(traces) == 1
    # The first block's auxiliary logits come before any mask.
    np.testing.assert_array_equal(outputs.aux_logits[0], other.aux_logits[0])
    assert np.abs(outputs.aux_logits[1] - other.aux_logits[1]).max() > 1e-6
    fc = variables["params"]["fc"]
    for block in range(2):
        expected = pooled[block] @ fc["kernel"] + fc["bias"]
        np.testing.assert_allclose(outputs.aux_logits[block], expected, rtol=1e-4, atol=1e-5)
    # Final features are the last block's, weighted by the forced class (one cell per channel here).
    expected = pooled[1] * fc["kernel"][:, 1]
    np.testing.assert_allclose(outputs.features, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("labels", [jnp.asarray([2, 0, 1, 2]), None])
def test_soft_masks_are_a_mixture_whose_gradient_passes_and_labels_change_nothing(labels):
    feature_map, linear = example(seed=6)
    attended = reverse_attention(
        feature_map, linear, labels, window=4, attention=SoftAttention(0.5)
    )
    logits = np.float64(feature_map.mean((1, 2)) @ linear.kernel + linear.bias)
    weights = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum(1, keepdims=True)
    expected = feature_map * (weights @ linear.kernel.T)[:, None, None]
    np.testing.assert_allclose(attended.feature_map, expected, rtol=1e-4, atol=1e-5)

    def through_the_choice(bias, temperature):
        layer, rule = linear._replace(bias=bias), SoftAttention(temperature)
        found = reverse_attention(feature_map, layer, labels, window=4, attention=rule)
        return found.feature_map.sum()

    assert np.any(jax.grad(through_the_choice)(linear.bias, 0.5))
    # A small temperature is the argmax again.
    sharp = reverse_attention(feature_map, linear, labels, window=4, attention=SoftAttention(1e-4))
    hard = reverse_attention(feature_map, linear, None, window=4)
    np.testing.assert_allclose(sharp.feature_map, hard.feature_map, rtol=1e-5)


def test_a_stopped_mask_has_a_gradient_and_the_map_before_it_none():
    feature_map, linear = example(seed=7)
    labels = jnp.asarray([2, 0, 1, 2])

    def loss(feature_map, kernel, stopped):
        layer = linear._replace(kernel=kernel)
        found = reverse_attention(feature_map, layer, labels, window=4, stopped=stopped)
        return found.feature_map.sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    to_map, to_kernel = gradient(feature_map, linear.kernel, True)
    np.testing.assert_array_equal(to_map, 0)
    expected_map, expected_kernel = gradient(feature_map, linear.kernel, False)
    np.testing.assert_array_equal(to_kernel, expected_kernel)
    assert np.any(expected_map)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_class_is_scored_by_the_block_under_its_own_row(rows):
    feature_map, linear = example(height=4 * rows, rows=rows, seed=8)
    block = lambda x: jnp.tanh(x) + 0.1 * jnp.roll(x, 1, axis=-1)  # noqa: E731
    logits, features = class_branches(feature_map, block, linear, 4)
    pooled_of = []
    for k in range(CLASSES):
        mask = linear.kernel[:, k].reshape(CHANNELS, rows).T.repeat(4, axis=0)[None, :, None]
        out = np.asarray(block(feature_map * mask), np.float64)
        cells = out.reshape(BATCH, rows, 4, 4, CHANNELS).mean((2, 3))
        pooled_of.append(cells.transpose(0, 2, 1).reshape(BATCH, -1))
        expected = pooled_of[-1] @ linear.kernel[:, k] + linear.bias[k]
        np.testing.assert_allclose(logits[:, k], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features, np.mean(pooled_of, axis=0), rtol=1e-4, atol=1e-5)


VARIANTS = {
    "dropped": {"last_block": "dropped"},
    "class_branches": {"last_block": "class_branches"},
    "stopped": {"reverse_attention": True, "attention": "stopped"},
    "soft": {"reverse_attention": True, "attention": "soft", "temperature": 0.5},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    module = TinyNetwork(num_classes=CLASSES, width=4, **VARIANTS[request.param])
    images = jax.random.uniform(jax.random.key(0), (BATCH, 8, 8, 1))
    return request.param, module, random_variables(module, (8, 8, 1)), images


def test_a_variant_is_jitted_as_it_is_and_says_its_rows(variant):
    name, module, variables, images = variant
    outputs = module.apply(variables, images)
    for ours, jitted in zip(outputs, jax.jit(module.apply)(variables, images), strict=True):
        np.testing.assert_allclose(ours, jitted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs.class_rows, variables["params"]["fc"]["kernel"].T)
    assert len(outputs.aux_logits) == (2 if name in ("stopped", "soft") else 0)
    assert ("layer1_1" in variables["params"]) == (name != "dropped")
    if name != "class_branches":  # the final logits are the features times the rows
        bias = variables["params"]["fc"]["bias"]
        expected = outputs.features @ outputs.class_rows.T + bias
        np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)


def test_what_labels_and_gradients_reach_in_training(variant):
    name, module, variables, images = variant

    @jax.jit
    def forward(params, labels):
        return module.apply(
            variables | {"params": params}, images, labels, train=True, mutable=["batch_stats"]
        )[0]

    labels = jnp.asarray([2, 0, 1, 2])
    one, other = (forward(variables["params"], y).logits for y in (labels, (labels + 1) % 3))
    # Labels choose nothing but the paper's masks.
    assert np.array_equal(one, other) == (name != "stopped")
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(forward(params, labels).logits ** 2)))
    before = gradient(variables["params"])["layer1_0"]
    assert any(map(np.any, jax.tree.leaves(before))) == (name != "stopped")
