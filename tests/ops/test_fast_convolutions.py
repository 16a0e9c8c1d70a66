"""Convolutions in their form for CPU, and the models whose convolutions are replaced."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from ancra_jax.attacks.objectives import value_and_input_gradient
from ancra_jax.ops import convolution
from ancra_jax.ops.convolution import Geometry, cpu_convolution, stock_convolution
from ancra_jax.ops.fast_convolutions import with_fast_convolutions

X = jax.random.uniform(jax.random.key(0), (2, 9, 8, 3))


def pair(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    size=st.one_of(pair(1, 3), pair(6, 9)),
    kernel_size=st.sampled_from([(1, 1), (3, 3), (2, 2), (5, 3), (1, 4)]),
    strides=pair(1, 3),
    padding=st.tuples(pair(0, 2), pair(0, 2)),
    dilation=pair(1, 2),
    channels=st.sampled_from([(1, 2), (3, 2), (2, 5), (4, 4)]),
    columns=st.sampled_from([0.0, np.inf]),
    pixels=st.sampled_from([1, 10**4]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_values_and_gradients_are_the_stock_ones(
    size, kernel_size, strides, padding, dilation, channels, columns, pixels, dtype
):
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    if any(n + sum(p) < e for n, p, e in zip(size, padding, extents, strict=True)):
        return
    rng = np.random.default_rng(0)
    geometry = Geometry(strides, padding, dilation)
    images = jnp.asarray(rng.normal(size=(3, *size, channels[0])), dtype)
    kernel = jnp.asarray(rng.normal(size=(*kernel_size, *channels)), dtype)

    def outputs_and_gradients(function):
        outputs, vjp = jax.vjp(lambda x, k: function(x, k, geometry), images, kernel)
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        return outputs, *vjp(jnp.asarray(cotangent, dtype))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_COLUMNS", columns)
        patch.setattr(convolution, "_PIXELS", pixels)
        patch.setattr(convolution, "_FEATURES", 1)
        ours = outputs_and_gradients(cpu_convolution)
    stock = outputs_and_gradients(stock_convolution)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for actual, expected in zip(ours, stock, strict=True):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        actual, expected = np.asarray(actual, np.float32), np.asarray(expected, np.float32)
        scale = max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def linen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(5, (3, 3))(x)))
            x = nn.relu(nn.Conv(6, (3, 2), strides=(2, 1), padding="VALID", kernel_dilation=2)(x))
            x = nn.remat(nn.Conv)(4, (3, 3), padding=((1, 0), (2, 1)), use_bias=False)(x)
            return nn.Dense(4)(x.mean(axis=(1, 2)))

    net = Net()
    return Partial(net.apply, net.init(jax.random.key(1), X)), 3


def nnx_module():
    conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    return Partial(lambda conv, x: nnx.relu(conv(x)).mean(axis=(1, 2)), conv), 1


def equinox():
    def logits(conv, x):
        return jax.nn.gelu(jax.vmap(conv)(x.transpose(0, 3, 1, 2))).mean(axis=(2, 3))

    return Partial(logits, eqx.nn.Conv2d(3, 4, 3, padding=1, key=jax.random.key(0))), 1


def other_layouts():
    """Channels first, and a layout that nobody uses."""

    def logits(kernels, x):
        x = jax.lax.conv(x.transpose(0, 3, 1, 2), kernels[0], (2, 1), "SAME")
        x = jnp.tanh(x)
        x = jax.lax.conv_general_dilated(
            x, kernels[1], (1, 2), "SAME", dimension_numbers=("NCHW", "WIHO", "CNWH")
        )
        return x.sum(axis=(2, 3)).T

    keys = jax.random.split(jax.random.key(2))
    shapes = (5, 3, 3, 2), (2, 5, 3, 4)
    return Partial(logits, [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]), 2


@jax.jit
def call_fast(model, x):
    return with_fast_convolutions(lambda x: model(x))(x)


def number_replaced(function, *args):
    """Convolutions of the package in what the function computes."""
    return str(jax.make_jaxpr(with_fast_convolutions(function))(*args)).count("cpu_convolution")


@pytest.mark.parametrize("make", [linen, nnx_module, equinox, other_layouts])
def test_models_keep_logits_and_gradients(make):
    model, convolutions = make()
    weight = jnp.arange(1.0, 5.0)

    @jax.jit
    def stock(model, x):
        return model(x), jax.grad(lambda x: jnp.sum(model(x) @ weight))(x)

    @jax.jit
    def fast(model, x):
        return call_fast(model, x), value_and_input_gradient(lambda x: model(x) @ weight, x)[1]

    assert number_replaced(lambda x: model(x), X) == convolutions
    for actual, expected in zip(fast(model, X), stock(model, X), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-6)


KERNEL = jax.random.normal(jax.random.key(3), (3, 3, 3, 3))


def conv(x, kernel=KERNEL, **options):
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "padding": "SAME"} | options
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), **layout)


@jax.custom_vjp
def with_rule(x):
    return conv(x)


with_rule.defvjp(lambda x: (conv(x), None), lambda _, cotangent: (2 * cotangent,))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: conv(x, KERNEL[:, :, :1], feature_group_count=3),
        lambda x: conv(x, lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
        lambda x: conv(x, padding=((-1, 0), (0, 0))),
        lambda x: jax.lax.conv(x[..., 0], jnp.ones((4, 9, 3)), (1,), "SAME"),
        lambda x: jax.lax.fori_loop(0, 2, lambda _, x: conv(x), x),
        lambda x: jax.lax.cond(x.sum() > 0, conv, lambda x: x, x),
        lambda x: jax.lax.scan(lambda x, _: (conv(x), None), x, length=2)[0],
        with_rule,
        lambda x: jnp.tanh(x) ** 2,
    ],
)
def test_everything_else_is_left_alone(function):
    assert number_replaced(function, X) == 0
    gradient = jax.grad(lambda f, x: jnp.sum(f(x) ** 2), argnums=1)
    np.testing.assert_array_equal(
        gradient(with_fast_convolutions(function), X), gradient(function, X)
    )


def test_functions_with_unused_results_and_constants():
    """What ``top_k`` finds but nobody uses; repeated operands; an integer among the results."""

    def function(x):
        largest, _ = jax.lax.top_k(jnp.sin(conv(x)), 2)
        return {"sum": largest + largest, "none": None, "size": jnp.argmax(x, axis=-1)}

    fast, stock = with_fast_convolutions(function)(X), function(X)
    assert jax.tree.structure(fast) == jax.tree.structure(stock)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fast, stock)
    assert number_replaced(function, X) == 1


def test_jit_inside_is_entered_unless_it_is_sharded():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert number_replaced(lambda x: jax.jit(conv)(x), X) == 1
    assert number_replaced(lambda x: jax.jit(conv, in_shardings=sharding)(x) + conv(x), X) == 1


def test_what_cannot_be_traced_by_itself_is_called_as_it_is():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.conv(x))

    assert call_fast(Noisy(nnx.Rngs(0)), X).shape == (2, 9, 8, 6)
    assert with_fast_convolutions(lambda x: (conv(x), "name"))(X)[1] == "name"
    with pytest.raises(ZeroDivisionError):
        with_fast_convolutions(lambda x: conv(x) / (1 // 0))(X)


def test_weights_stay_arguments():
    traces = []

    def logits(kernel, x):
        traces.append(1)
        return conv(x, kernel).mean(axis=(1, 2))

    first = call_fast(Partial(logits, KERNEL), X)
    count = len(traces)
    np.testing.assert_allclose(call_fast(Partial(logits, 2 * KERNEL), X), 2 * first, rtol=1e-5)
    assert len(traces) == count


def test_accelerators_keep_the_function(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert with_fast_convolutions(conv) is conv
