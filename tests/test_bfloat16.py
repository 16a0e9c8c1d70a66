"""Training that computes in bfloat16: what stays float32, and how near it is to float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import small_config

from ancra_jax import components, data, methods, optim, sharding
from ancra_jax.train_state import create_train_state, make_train_step


def first_step(dtype):
    """Of natural training, from the same weights whatever the dtype."""
    config = small_config(
        "natural",
        model__name="wide_resnet10_1",
        model__dtype=dtype,
    )
    splits = components.split_dataset(components.load_dataset(config.data), config)
    model = components.create_model(config, 10)
    optimizer = optim.create(config.optimizer, 1, 1)
    key = jax.random.key(0)
    batches = components.batch_plan(
        config, splits, key, key, sharding.create_mesh(jax.devices()[:1])
    )
    step = make_train_step(model.apply, methods.create(config), optimizer, batches)
    state = jax.jit(lambda: create_train_state(model.init, optimizer, (8, 8, 1), key, {}))()
    order = jnp.arange(len(splits.train), dtype=jnp.int32)
    return step(state, data.put_on_device(splits.train), order)


@pytest.mark.slow
def test_a_bfloat16_step_is_near_the_float32_one_and_keeps_float32_state():
    state, metrics = first_step("bfloat16")
    expected_state, expected = first_step("float32")
    for leaf in jax.tree.leaves((state, metrics)):
        assert leaf.dtype == jnp.float32 or jnp.issubdtype(leaf.dtype, jnp.integer)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=0.05)
        assert metrics[name] != expected[name]  # it did compute in bfloat16
    statistics = zip(
        jax.tree.leaves(state.batch_stats), jax.tree.leaves(expected_state.batch_stats), strict=True
    )
    for ours, theirs in statistics:
        np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.02)
