"""Layers with PyTorch's semantics: convolution, batch normalisation, linear, average pooling."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ancra_jax.errors import UsageError
from ancra_jax.ops import convolution
from ancra_jax.ops.convolution import FeatureMap, NewFeatureMap
from ancra_jax.ops.target import platform
from ancra_jax.types import Logits

Features = Float[Array, "batch features"]
Initializer = Callable[..., Array]
Activation = Callable[[FeatureMap], FeatureMap]

FOLDED = "folded"
"""The collection of what folded variables hold beside parameters: what is left of batch
normalisation, and on CPU the turned kernels of convolutions."""

GRADIENT_RULES = ("auto", "stock", "forward")

torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for kernels of convolutions and linear layers: U(+-1/sqrt(fan_in))."""

_gradient_rule: ContextVar[str] = ContextVar("gradient_rule", default="auto")


@contextmanager
def gradient_rule(rule: str) -> Iterator[None]:
    """Choose how `Conv` differentiates in what is traced inside the ``with`` block.

    Args:
      rule: ``'stock'`` is JAX's own rule, ``'forward'`` computes the input gradient as an ordinary
        forward convolution, ``'auto'`` (the default everywhere) takes ``'forward'`` on the CPU
        backend and ``'stock'`` elsewhere. ``'forward'`` does not allow forward-mode
        differentiation: ask for ``'stock'`` where ``jax.jvp`` has to go through a network on CPU.

    Raises:
      UsageError: ``rule`` is none of these.
    """
    if rule not in GRADIENT_RULES:
        raise UsageError(f"gradient rule {rule!r}: allowed are {', '.join(GRADIENT_RULES)}")
    token = _gradient_rule.set(rule)
    try:
        yield
    finally:
        _gradient_rule.reset(token)


class Conv(nn.Module):
    """Convolution without bias, padded by half its kernel size as PyTorch's ``padding=k//2``.

    With ``shifted``, a convolution with a stride has one row and one column of padding less before
    the image, as TensorFlow's ``'SAME'`` for images of even sides.

    On CPU the convolution and its input gradient are those of ``ancra_jax.ops.convolution``, which
    XLA computes faster there, above all inside a compiled loop. See `gradient_rule`. Variables made
    by `ancra_jax.models.folded` hold what the input gradient needs of the kernel.
    """

    features: int  # output channels
    kernel_size: int = 3  # side of the square kernel, odd
    stride: int = 1
    dtype: Any = jnp.float32  # of the computation; the kernel is float32
    kernel_init: Initializer = torch_kernel_init
    shifted: bool = False

    @nn.compact
    def __call__(self, x: FeatureMap) -> NewFeatureMap:
        """Apply the convolution."""
        size, half = self.kernel_size, self.kernel_size // 2
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        before = max(half - self.stride + 1, 0) if self.shifted else half
        sides = ((before, half), (before, half))
        geometry = convolution.Geometry((self.stride, self.stride), sides)
        rule = _gradient_rule.get()
        if rule == "forward" or (rule == "auto" and platform() == "cpu"):
            known: Array | None = self.get_variable(FOLDED, "turned")
            return convolution.cpu_convolution(x.astype(self.dtype), kernel, geometry, known)
        return convolution.stock_convolution(x.astype(self.dtype), kernel, geometry)


class BatchNorm(nn.Module):
    """Batch normalisation as PyTorch's ``BatchNorm2d``.

    The batch is normalised with its biased variance; the running variance is updated with the
    unbiased one. Everything is computed in float32, whatever the dtype of the network. Flax's own
    layer keeps the biased variance. With variables made by `ancra_jax.models.folded` it only adds a
    shift, and multiplies by a scale unless the kernel of the convolution before contains it. In the
    training phase there is no forward-mode differentiation.

    Each of the ``parts``, rows that follow one another, is normalised by itself, and the running
    statistics move by the mean of theirs: with a part a device as in PyTorch's ``DataParallel``,
    which keeps those of its first device. Nothing then has to be sent before the next layer.
    """

    momentum: float = 0.9  # weight of the old running statistics; PyTorch's is one minus this
    parts: int = 1  # of a training batch, each with statistics of its own
    epsilon: float = 1e-5  # added to the variance

    @nn.compact
    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        """Normalise ``x`` with its own statistics (training) or the running ones.

        Raises:
          UsageError: a training batch cannot be divided into the parts, or has one value per
            channel only, so no variance.
        """
        if not train and self.has_variable(FOLDED, "bias"):
            shift: Array = self.get_variable(FOLDED, "bias")
            if not self.has_variable(FOLDED, "scale"):
                return x + shift  # in one kernel with the convolution before it
            values = x.astype(jnp.float32) * self.get_variable(FOLDED, "scale")
            return (values + shift).astype(x.dtype)
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        if not train:
            values, mean, var = x.astype(jnp.float32), running_mean.value, running_var.value
            return _affine(values, mean, var, scale, bias, self.epsilon).astype(x.dtype)
        if x.shape[0] % self.parts:
            raise UsageError(
                f"batch_norm_parts={self.parts}: the {x.shape[0]} images of a batch in training "
                "must be divisible by it"
            )
        count = x.size // x.shape[-1] // self.parts
        if count < 2:
            raise UsageError(
                f"feature map of shape {x.shape}: batch normalisation in training needs more "
                "than one value per channel (a larger batch or larger images)"
            )
        normalise = partial(_normalise, scale=scale, bias=bias, epsilon=self.epsilon)
        if self.parts == 1:
            normalised, mean, var = normalise(x)
        else:
            normalised, *found = jax.vmap(normalise)(x.reshape(self.parts, -1, *x.shape[1:]))
            normalised = normalised.reshape(x.shape)
            mean, var = (jnp.mean(one, axis=0) for one in found)
        if not self.is_initializing():
            mean, var = jax.lax.stop_gradient((mean, var * (count / (count - 1))))
            m = self.momentum
            running_mean.value = m * running_mean.value + (1 - m) * mean
            running_var.value = m * running_var.value + (1 - m) * var
        return normalised


ChannelValues = Float[Array, "channels"]


def _affine(
    values: FeatureMap,
    mean: ChannelValues,
    var: ChannelValues,
    scale: ChannelValues,
    bias: ChannelValues,
    epsilon: float,
) -> FeatureMap:
    return (values - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(
    x: FeatureMap, scale: ChannelValues, bias: ChannelValues, epsilon: float
) -> tuple[FeatureMap, ChannelValues, ChannelValues]:
    """Normalise with the batch's statistics, and return these; they receive no gradient.

    The gradient's rule sums over the batch once, where differentiating mean and variance step by
    step sums three times, of which one sum is always 0.
    """
    values = x.astype(jnp.float32)
    mean = jnp.mean(values, axis=(0, 1, 2))
    if x.dtype == jnp.bfloat16:
        # One pass. What E[x^2] - E[x]^2 loses in float32 is below what rounding x has lost already.
        squares = jnp.mean(jnp.square(values), axis=(0, 1, 2))
        var = jnp.maximum(squares - jnp.square(mean), 0)
    else:
        var = jnp.mean(jnp.square(values - mean), axis=(0, 1, 2))
    return _affine(values, mean, var, scale, bias, epsilon).astype(x.dtype), mean, var


def _normalise_forward(
    x: FeatureMap, scale: ChannelValues, bias: ChannelValues, epsilon: float
) -> tuple[tuple[FeatureMap, ChannelValues, ChannelValues], tuple[Array, ...]]:
    outputs = _normalise(x, scale, bias, epsilon)
    return outputs, (x, scale, *outputs[1:])


def _normalise_backward(
    epsilon: float, residuals: tuple[Array, ...], cotangents: tuple[Array, ...]
) -> tuple[FeatureMap, ChannelValues, ChannelValues]:
    x, scale, mean, var = residuals
    g, inverse = cotangents[0].astype(jnp.float32), jax.lax.rsqrt(var + epsilon)
    normal = (x.astype(jnp.float32) - mean) * inverse
    of_bias = jnp.sum(g, axis=(0, 1, 2))
    of_scale = jnp.sum(g * normal, axis=(0, 1, 2))
    count = x.size // x.shape[-1]
    of_x = (g - of_bias / count - normal * (of_scale / count)) * (inverse * scale)
    return of_x.astype(x.dtype), of_scale, of_bias


_normalise.defvjp(_normalise_forward, _normalise_backward)


@jax.custom_jvp
def relu(x: FeatureMap) -> FeatureMap:
    """Compute ``max(x, 0)``; its derivative looks at the result, not at ``x`` as `jax.nn.relu`'s.

    Nothing but the maximum then needs ``x``, and a GPU computes it in one kernel with the
    convolution and the sum before it. Where ``x`` is needed anyway, as by the gradient of batch
    normalisation, the result would be one map more to read.
    """
    return jnp.maximum(x, 0)


# Not ``y > 0``, which XLA simplifies to ``x > 0``.
relu.defjvps(lambda g, y, x: jax.lax.select(y != 0, g, jnp.zeros_like(g)))


def after_norm(activation: Activation, train: bool) -> Activation:
    """Return the activation in the form that suits a batch normalisation right before it."""
    return nn.relu if train and activation is relu else activation


class Linear(NamedTuple):
    """A linear layer's weights; calling it computes ``z @ kernel + bias``."""

    kernel: Float[Array, "features classes"]
    bias: Float[Array, "classes"]

    def __call__(self, z: Features) -> Logits:
        """Return the logits of the features ``z``."""
        return z @ self.kernel + self.bias


class Classifier(nn.Module):
    """Holds the weights of the final linear layer, whose rows reverse attention uses as masks."""

    num_classes: int
    pool_window: int  # of the average pooling before the layer
    zero_bias: bool = False  # start from a bias of 0, not PyTorch's default U(+-1/sqrt(fan_in))

    @nn.compact
    def __call__(self, feature_map: FeatureMap) -> Linear:
        """Return the layer for the pooled features of such a map."""
        _, height, width, channels = feature_map.shape
        rows, columns = (side // min(self.pool_window, side) for side in (height, width))
        fan_in = rows * columns * channels
        bound = fan_in**-0.5
        bias_init: Initializer = partial(jax.random.uniform, minval=-bound, maxval=bound)
        if self.zero_bias:
            bias_init = nn.initializers.zeros_init()
        shape = (fan_in, self.num_classes)
        kernel = self.param("kernel", torch_kernel_init, shape, jnp.float32)
        bias = self.param("bias", bias_init, (self.num_classes,), jnp.float32)
        return Linear(kernel, bias)


def average_pool(
    feature_map: FeatureMap, window: int
) -> Float[Array, "batch pooled_height pooled_width channels"]:
    """Average over windows that do not overlap, in float32.

    A window larger than the map shrinks to it; rows and columns that do not fill a window are left
    out, as in PyTorch.
    """
    batch, height, width, channels = feature_map.shape
    h, w = min(window, height), min(window, width)
    rows, columns = height // h, width // w
    cropped = feature_map[:, : rows * h, : columns * w].astype(jnp.float32)
    return cropped.reshape(batch, rows, h, columns, w, channels).mean(axis=(2, 4))
