"""Convolution, batch normalisation and pooling against JAX's own rules and PyTorch's semantics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax.errors import UsageError
from ancra_jax.models import layers
from ancra_jax.models.layers import BatchNorm, Conv, average_pool, gradient_rule
from ancra_jax.ops.convolution import Geometry, cpu_convolution, stock_convolution, turned
from tests.support.processes import run_on_devices


def with_turned_kernel(images, kernel, geometry):
    return cpu_convolution(images, kernel, geometry, turned(kernel))


CONVOLUTIONS = {
    "forward": cpu_convolution,
    "turned": with_turned_kernel,
    "stock": stock_convolution,
}
HALVING = Geometry((2, 2), ((1, 1), (1, 1)))


def test_the_rule_is_the_forward_one_on_cpu_only(monkeypatch):
    images, layer = jnp.ones((1, 4, 4, 1)), Conv(1)
    variables = layer.init(jax.random.key(0), images)

    def uses_custom_rule():
        return "custom_vjp" in str(jax.make_jaxpr(lambda x: layer.apply(variables, x))(images))

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert uses_custom_rule()
    with gradient_rule("stock"):
        assert not uses_custom_rule()
        jax.jvp(lambda x: layer.apply(variables, x), (images,), (images,))  # forward mode
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not uses_custom_rule()
    with gradient_rule("forward"):
        assert uses_custom_rule()
    with pytest.raises(UsageError, match="'fast': allowed are auto"), gradient_rule("fast"):
        pass


def test_second_derivatives_and_vmap():
    rng = np.random.default_rng(2)
    images = jnp.asarray(rng.normal(size=(2, 6, 6, 2)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(3, 3, 3, 2, 2)), jnp.float32)

    def second_order(convolution):
        def squared_gradient(images, kernel):
            gradient = jax.grad(lambda x: jnp.sum(convolution(x, kernel, HALVING) ** 2))
            return jnp.sum(gradient(images) ** 2)

        return jax.vmap(jax.grad(squared_gradient, argnums=(0, 1)), (None, 0))(images, kernels)

    *others, stock = (second_order(convolution) for convolution in CONVOLUTIONS.values())
    for gradients in others:
        for actual, expected in zip(gradients, stock, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def attack_then_kernel_gradient(rule, images, kernel, num_steps=3):
    """A gradient loop over the images, then the gradient of the kernel; compiled whole."""

    def loss(images, kernel):
        return jnp.sum(jnp.sin(CONVOLUTIONS[rule](images, kernel, HALVING)))

    @jax.jit
    def run(images, kernel):
        step = lambda _, x: x + 0.1 * jax.grad(loss)(x, kernel)  # noqa: E731
        attacked = jax.lax.fori_loop(0, num_steps, step, images)
        return attacked, jax.grad(loss, argnums=1)(attacked, kernel)

    return run(images, kernel)


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ancra_jax.models.layers import BatchNorm
from tests.models.test_layers import attack_then_kernel_gradient

assert jax.device_count() == 8
images = jax.random.uniform(jax.random.key(0), (16, 7, 8, 2))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 4))
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
sharded = attack_then_kernel_gradient(
    "forward",
    jax.device_put(images, NamedSharding(mesh, P("data"))),
    jax.device_put(kernel, NamedSharding(mesh, P())),
)
whole = attack_then_kernel_gradient("stock", images, kernel)
assert [s.data.shape[0] for s in sharded[0].addressable_shards] == [2] * 8
for a, b in zip(sharded, whole, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
assert np.abs(whole[0] - images).max() > 0.1

for parts, sent in {1: True, 8: False}.items():
    layer = BatchNorm(parts=parts)
    variables = layer.init(jax.random.key(2), images, train=False)
    apply = lambda x: layer.apply(variables, x, train=True, mutable=["batch_stats"])[0] ** 2
    program = jax.jit(jax.grad(lambda x: apply(x)[..., 0].sum())).lower(
        jax.ShapeDtypeStruct(images.shape, images.dtype, sharding=NamedSharding(mesh, P("data")))
    )
    assert ("all-reduce" in program.compile().as_text()) == sent
"""


def test_eight_devices_give_the_gradients_of_one_and_normalise_a_part_each_by_themselves():
    run_on_devices(8, SHARDED)


def batch_norm(x, *, train, parts=1):
    layer = BatchNorm(parts=parts)
    variables = layer.init(jax.random.key(0), x, train=False)
    return layer.apply(variables, x, train=train, mutable=["batch_stats"])


def test_batch_norm_follows_pytorch():
    x = np.random.default_rng(4).normal(3.0, 2.0, size=(4, 3, 2, 5)).astype(np.float32)
    y, updated = batch_norm(jnp.asarray(x), train=True)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    evaluated, unchanged = batch_norm(jnp.asarray(x), train=False)
    np.testing.assert_allclose(evaluated, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(unchanged["batch_stats"]["var"], np.ones(5))


def test_parts_of_a_batch_are_normalised_as_batches_of_their_own():
    rng = np.random.default_rng(9)
    x = jnp.asarray(rng.normal(rng.normal(size=(8, 1, 1, 1)), 2.0, (8, 3, 2, 5)), jnp.float32)
    pull = lambda x, parts: jnp.sum(jnp.sin(batch_norm(x, train=True, parts=parts)[0]))  # noqa: E731
    split = jnp.split(x, 4)
    outputs, updated = zip(*(batch_norm(part, train=True) for part in split), strict=True)
    y, moved = batch_norm(x, train=True, parts=4)
    np.testing.assert_allclose(y, jnp.concatenate(outputs), atol=1e-6)
    means = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *updated)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved, means)
    gradients = [jax.grad(pull)(part, 1) for part in split]
    np.testing.assert_allclose(jax.grad(pull)(x, 4), jnp.concatenate(gradients), atol=1e-6)
    with pytest.raises(UsageError, match="batch_norm_parts=3: the 8 images"):
        batch_norm(x, train=True, parts=3)


def test_batch_norm_variance_does_not_cancel():
    x = 1000 + np.random.default_rng(5).normal(size=(8, 4, 4, 1)).astype(np.float32) * 0.1
    _, updated = batch_norm(jnp.asarray(x), train=True)
    exact = x.astype(np.float64).var(ddof=1)
    np.testing.assert_allclose((updated["batch_stats"]["var"] - 0.9) / 0.1, exact, rtol=1e-3)


def test_batch_norm_computes_in_float32_under_bfloat16():
    x = jnp.asarray(np.random.default_rng(6).normal(2.0, 1.0, size=(8, 4, 4, 3)), jnp.bfloat16)
    y, updated = batch_norm(x, train=True)
    assert y.dtype == jnp.bfloat16
    exact, expected = batch_norm(x.astype(jnp.float32), train=True)
    # One pass over the values here, two there.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, expected)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_batch_norm_is_that_of_its_equation(dtype):
    rng = np.random.default_rng(8)
    x = jnp.asarray(rng.normal(1.0, 2.0, size=(6, 3, 4, 5)), dtype)
    weights = {"scale": rng.uniform(0.5, 2, 5), "bias": rng.normal(size=5)}
    weights = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)

    def ours(x, weights):
        full = variables | {"params": weights}
        y, _ = layer.apply(full, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    def equation(x, weights):
        values = x.astype(jnp.float32)
        mean, var = jnp.mean(values, (0, 1, 2)), jnp.var(values, (0, 1, 2))
        y = (values - mean) / jnp.sqrt(var + 1e-5) * weights["scale"] + weights["bias"]
        return jnp.sum(jnp.sin(y.astype(dtype).astype(jnp.float32)))

    found, expected = (jax.grad(f, argnums=(0, 1))(x, weights) for f in (ours, equation))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_relu_is_that_of_jax_with_its_derivative():
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0]).reshape(1, 1, 1, 5)
    for function in (lambda f: f(x), lambda f: jax.grad(lambda x: jnp.sum(f(x) * x))(x)):
        np.testing.assert_array_equal(function(layers.relu), function(nn.relu))


def test_batch_norm_refuses_one_value_per_channel():
    with pytest.raises(UsageError, match="more than one value per channel"):
        batch_norm(jnp.ones((1, 1, 1, 3)), train=True)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (2, 9)])
def test_average_pool_equals_flax_with_a_window_that_shrinks_to_the_map(size):
    x = jnp.asarray(np.random.default_rng(7).normal(size=(2, *size, 3)), jnp.float32)
    window = (min(4, size[0]), 4)
    expected = nn.avg_pool(x, window, strides=window)
    np.testing.assert_allclose(average_pool(x, 4), expected, atol=1e-6)


def test_initial_kernels_follow_pytorch():
    kernel = layers.torch_kernel_init(jax.random.key(0), (3, 3, 64, 200))
    bound = (3 * 3 * 64) ** -0.5
    assert 0.999 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.01)
