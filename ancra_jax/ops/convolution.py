"""Two-dimensional convolution in the form that XLA's CPU backend computes fastest.

JAX's own convolution and its gradients have five weak spots there (jax 0.10):

- With an odd number of input channels, as of colour images, it is several times slower than with
  the next multiple of four.
- The input gradient leaves the reversal of the kernel to the convolution. Inside a compiled loop
  XLA has only a naive implementation of that, 10 to 18 times slower (jax issue 12868).
- The input gradient of a strided convolution multiplies mostly zeros.
- With a result of 2x2 pixels it is up to a hundred times slower than the same sums as one matrix
  product, and with a single pixel it multiplies mostly padding.
- The kernel gradient is one product over all pixels of all images, which is slow where there are
  many of them: with 64 channels at 32x32 a third as fast as image by image.

So input channels are padded, the input gradient is written as an ordinary convolution of the
cotangent with the flipped, transposed kernel, or, where that takes little memory, as one matrix
product whose columns are added up where they belong; small results are one matrix product of the
image's patches, and kernel gradients are summed over parts of the batch. Values are those of JAX's
own rule up to rounding. Forward-mode differentiation is not possible.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FeatureMap = Float[Array, "batch height width channels"]
NewFeatureMap = Float[Array, "batch out_height out_width features"]
Kernel = Float[Array, "kernel_height kernel_width channels features"]
TurnedKernel = Float[Array, "kernel_height kernel_width features channels"]
# For height and width: sizes of input, output and kernel, stride, dilation, padding.
Sides = list[tuple[int, int, int, int, int, tuple[int, int]]]

_LANES = 4  # input channels are padded to a multiple of it
_COLUMNS = 3  # largest size of the product's columns, in sizes of input and output together
_SMALL = 4  # pixels of a result that is computed from patches
_PIXELS = 2048  # of the images whose kernel gradients are computed together
_FEATURES = 32  # fewer, and parts of the batch are no faster than the whole
_PARTS = 32  # of a batch at most, for the sake of compile time


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


def turned(kernel: Kernel) -> TurnedKernel:
    """Return the kernel of the input gradient: flipped, inputs and outputs exchanged."""
    return jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def cpu_convolution(
    images: FeatureMap,
    kernel: Kernel,
    geometry: Geometry,
    turned_kernel: TurnedKernel | None = None,
) -> NewFeatureMap:
    """Compute the values of ``stock_convolution``, and the same gradients, faster on CPU.

    In a loop with constant weights, give what `turned` makes of the kernel: XLA would turn it in
    every iteration. It must be of the same kernel, and its own gradient is 0.
    """
    return _convolve(images, kernel, geometry)


def _forward(
    images: FeatureMap, kernel: Kernel, geometry: Geometry, turned_kernel: TurnedKernel | None
) -> tuple[NewFeatureMap, tuple[FeatureMap, Kernel, TurnedKernel | None]]:
    return cpu_convolution(images, kernel, geometry), (images, kernel, turned_kernel)


def _backward(
    geometry: Geometry,
    residuals: tuple[FeatureMap, Kernel, TurnedKernel | None],
    cotangent: NewFeatureMap,
) -> tuple[FeatureMap, Kernel, TurnedKernel | None]:
    images, kernel, turned_kernel = residuals
    columns = cotangent[..., 0].size * kernel[..., 0].size
    sides = _sides(images, cotangent, kernel, geometry)
    as_product = columns <= _COLUMNS * (images.size + cotangent.size)
    image_gradient = _by_product if as_product else _by_convolution
    known = turned(kernel) if turned_kernel is None else turned_kernel
    return (
        image_gradient(sides, known, geometry, cotangent),
        _kernel_gradient(images, kernel, geometry, cotangent),
        jax.tree.map(jnp.zeros_like, turned_kernel),
    )


cpu_convolution.defvjp(_forward, _backward)


def _convolve(
    images: FeatureMap, kernel: Kernel, geometry: Geometry, spread: tuple[int, int] = (1, 1)
) -> NewFeatureMap:
    out = jax.eval_shape(lambda x, k: stock_convolution(x, k, geometry, spread), images, kernel)
    sides = _sides(images, out, kernel, geometry)
    if out.shape[1] * out.shape[2] <= _SMALL and spread == (1, 1):
        return _from_patches(sides, images, kernel, geometry)
    return stock_convolution(*_even_channels(images, kernel), geometry, spread)


def _sides(images: Any, result: Any, kernel: Any, geometry: Geometry) -> Sides:
    sizes = images.shape[1:3], result.shape[1:3], kernel.shape[:2]
    return list(zip(*sizes, geometry.strides, geometry.dilation, geometry.padding, strict=True))


def _from_patches(
    sides: Sides, images: FeatureMap, kernel: Kernel, geometry: Geometry
) -> NewFeatureMap:
    """Multiply the image's patches by the kernel, without outer entries that see only padding.

    Entry i of the kernel sees, for output o, input so + di - p.
    """
    edges = [(0, 0, 0), *((low, high, 0) for low, high in geometry.padding), (0, 0, 0)]
    padded = jax.lax.pad(images, jnp.zeros((), images.dtype), edges)
    starts, stops = [], []
    for n, out, size, s, d, (low, _) in sides:
        seeing = [i for i in range(size) if any(0 <= s * o + d * i - low < n for o in range(out))]
        starts.append(min(seeing, default=0))
        stops.append(max(seeing, default=0) + 1)
    (_, height, _, s, d, _), (_, width, _, t, e, _) = sides

    def seen_by(i: int, j: int) -> Array:
        down, right = d * i, e * j
        return padded[
            :, down : down + (height - 1) * s + 1 : s, right : right + (width - 1) * t + 1 : t
        ]

    rows, columns = (range(*ends) for ends in zip(starts, stops, strict=True))
    patches = jnp.concatenate([seen_by(i, j) for i in rows for j in columns], axis=-1)
    weights = kernel[rows.start : rows.stop, columns.start : columns.stop]
    product = jnp.einsum(
        "bhwc,cf->bhwf",
        patches,
        weights.reshape(-1, kernel.shape[-1]),
        precision=geometry.precision,
        preferred_element_type=jnp.promote_types(images.dtype, jnp.float32),
    )
    return product.astype(images.dtype)


def _kernel_gradient(
    images: FeatureMap, kernel: Kernel, geometry: Geometry, cotangent: NewFeatureMap
) -> Kernel:
    """Sum the gradients of parts of the batch, so that no product is over too many pixels."""
    batch, height, width, features = cotangent.shape
    size = max(_PIXELS // (height * width), math.ceil(batch / _PARTS))
    if features < _FEATURES:
        size = batch
    convolve = _convolve if height * width <= _SMALL else stock_convolution

    def of_part(first: int) -> Kernel:
        part = images[first : first + size]
        transpose = jax.linear_transpose(lambda k: convolve(part, k, geometry), kernel)
        return transpose(cotangent[first : first + size])[0]

    parts = [of_part(first) for first in range(0, batch, size)]
    return sum(parts[1:], parts[0])


def _even_channels(images: Array, kernel: Array) -> tuple[Array, Array]:
    channels = images.shape[-1]
    padding = -channels % _LANES if channels % 2 and channels > 1 else 0
    return (
        jnp.pad(images, [(0, 0), (0, 0), (0, 0), (0, padding)]),
        jnp.pad(kernel, [(0, 0), (0, 0), (0, padding), (0, 0)]),
    )


def _by_convolution(
    sides: Sides, turned_kernel: TurnedKernel, geometry: Geometry, cotangent: Array
) -> Array:
    """Convolve the cotangent with the turned kernel.

    The low padding is d(k-1) - p; the high padding makes the result as large as the input.
    """
    height, width = (
        (d * (k - 1) - low, n - (out - 1) * s - 1 + low) for n, out, k, s, d, (low, _) in sides
    )
    ordinary = geometry._replace(strides=(1, 1), padding=(height, width))
    return _convolve(cotangent, turned_kernel, ordinary, geometry.strides)


def _by_product(
    sides: Sides, turned_kernel: TurnedKernel, geometry: Geometry, cotangent: Array
) -> Array:
    """Multiply the cotangent by all entries of the kernel, and add up where each one belongs.

    Entry i of the kernel, the i-th from the end of the turned one, belongs, for output o, to input
    so + di - p. Sums are in float32 at least, as inside a convolution.
    """
    columns = jnp.einsum(
        "bhwf,ijfc->bhwijc",
        cotangent,
        turned_kernel,
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
        return jax.lax.pad(columns[:, :, :, -1 - i, -1 - j], zero, spread)

    terms = [placed(i, j) for i in range(rows) for j in range(cols)]
    return sum(terms[1:], terms[0]).astype(cotangent.dtype)
