"""Two-dimensional convolution in the form that XLA's CPU backend computes fastest.

JAX's own convolution and its gradient have three weak spots there (jax 0.10):

- With an odd number of input channels, as of colour images, it is several times slower than with
  the next multiple of four.
- The input gradient leaves the reversal of the kernel to the convolution. Inside a compiled loop
  XLA has only a naive implementation of that, 10 to 18 times slower (jax issue 12868).
- The input gradient of a strided convolution multiplies mostly zeros.

So input channels are padded, and the input gradient is written as an ordinary convolution of the
cotangent with the flipped, transposed kernel; or, where that takes little memory, as one matrix
product whose columns are added up where they belong. Values are those of JAX's own rule up to
rounding. Forward-mode differentiation is not possible.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FeatureMap = Float[Array, "batch height width channels"]
NewFeatureMap = Float[Array, "batch out_height out_width features"]
Kernel = Float[Array, "kernel_height kernel_width channels features"]
# For height and width: sizes of input, output and kernel, stride, dilation, padding.
Sides = list[tuple[int, int, int, int, int, tuple[int, int]]]

_LANES = 4  # input channels are padded to a multiple of it
_COLUMNS = 3  # largest size of the product's columns, in sizes of input and output together


class Geometry(NamedTuple):
    """Everything about a convolution but its operands; hashable. Pairs are of height and width."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]  # zeros before and after, not negative
    dilation: tuple[int, int] = (1, 1)  # distance of the kernel's entries
    precision: jax.lax.PrecisionLike = None  # see ``jax.lax.Precision``


def stock_convolution(
    images: FeatureMap, kernel: Kernel, geometry: Geometry, spread: tuple[int, int] = (1, 1)
) -> NewFeatureMap:
    """Compute JAX's own convolution (NHWC, HWIO), differentiated by JAX's own rules.

    ``spread`` is the distance of the images' entries, with zeros between them.
    """
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        window_strides=geometry.strides,
        padding=geometry.padding,
        lhs_dilation=spread,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=geometry.precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def cpu_convolution(images: FeatureMap, kernel: Kernel, geometry: Geometry) -> NewFeatureMap:
    """Compute the values of ``stock_convolution``, and the same gradients, faster on CPU."""
    images, kernel = _even_channels(images, kernel)
    return stock_convolution(images, kernel, geometry)


def _forward(
    images: FeatureMap, kernel: Kernel, geometry: Geometry
) -> tuple[NewFeatureMap, tuple[FeatureMap, Kernel]]:
    return cpu_convolution(images, kernel, geometry), (images, kernel)


def _backward(
    geometry: Geometry, residuals: tuple[FeatureMap, Kernel], cotangent: NewFeatureMap
) -> tuple[FeatureMap, Kernel]:
    images, kernel = residuals
    (kernel_gradient,) = jax.linear_transpose(
        lambda k: stock_convolution(images, k, geometry), kernel
    )(cotangent)
    columns = cotangent[..., 0].size * kernel[..., 0].size
    as_product = columns <= _COLUMNS * (images.size + cotangent.size)
    sizes = images.shape[1:3], cotangent.shape[1:3], kernel.shape[:2]
    sides = list(zip(*sizes, geometry.strides, geometry.dilation, geometry.padding, strict=True))
    image_gradient = _by_product if as_product else _by_convolution
    return image_gradient(sides, kernel, geometry, cotangent), kernel_gradient


cpu_convolution.defvjp(_forward, _backward)


def _even_channels(images: Array, kernel: Array) -> tuple[Array, Array]:
    channels = images.shape[-1]
    padding = -channels % _LANES if channels % 2 and channels > 1 else 0
    return (
        jnp.pad(images, [(0, 0), (0, 0), (0, 0), (0, padding)]),
        jnp.pad(kernel, [(0, 0), (0, 0), (0, padding), (0, 0)]),
    )


def _by_convolution(sides: Sides, kernel: Kernel, geometry: Geometry, cotangent: Array) -> Array:
    """Convolve the cotangent with the turned kernel.

    The low padding is d(k-1) - p; the high padding makes the result as large as the input.
    """
    turned = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    height, width = (
        (d * (k - 1) - low, n - (out - 1) * s - 1 + low) for n, out, k, s, d, (low, _) in sides
    )
    ordinary = geometry._replace(strides=(1, 1), padding=(height, width))
    return stock_convolution(*_even_channels(cotangent, turned), ordinary, geometry.strides)


def _by_product(sides: Sides, kernel: Kernel, geometry: Geometry, cotangent: Array) -> Array:
    """Multiply the cotangent by all entries of the kernel, and add up where each one belongs.

    Entry i of the kernel belongs, for output o, to input so + di - p. Sums are in float32 at least,
    as inside a convolution.
    """
    columns = jnp.einsum(
        "bhwf,ijcf->bhwijc",
        cotangent,
        kernel,
        precision=geometry.precision,
        preferred_element_type=jnp.promote_types(cotangent.dtype, jnp.float32),
    )
    zero = jnp.zeros((), columns.dtype)
    (n, out, rows, s, d, (top, _)), (m, out_m, cols, t, e, (left, _)) = sides

    def placed(i: int, j: int) -> Array:
        down, right = d * i - top, e * j - left
        spread = [
            (0, 0, 0),
            (down, n - down - (out - 1) * s - 1, s - 1),
            (right, m - right - (out_m - 1) * t - 1, t - 1),
            (0, 0, 0),
        ]
        return jax.lax.pad(columns[:, :, :, i, j], zero, spread)

    terms = [placed(i, j) for i in range(rows) for j in range(cols)]
    return sum(terms[1:], terms[0]).astype(cotangent.dtype)
