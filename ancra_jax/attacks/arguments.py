"""What users give the attacks, argument by argument: checked, and converted to what attacks take.

Every public function of ``ancra_jax.attacks`` calls these. A wrong value raises a ValueError or a
TypeError that names the argument, the value and what is allowed. Under a transformation (an attack
inside a jitted function) there are no values to look at: then shapes and dtypes alone are checked.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from ancra_jax.ops.images import ArrayLike

AnyKey = Key[Array, ""] | UInt32[Array, "words"] | ArrayLike | int
Number = float | int | np.number | Float[Array, ""] | Int[Array, ""]

ROUNDING = 1e-6
"""How far, on the [0, 1] pixel scale, rounding may carry a pixel out of its range."""
_LARGEST = 2**31 - 1
_THREEFRY = "threefry2x32"
_CHANNELS = (1, 3, 4)


def shown(value: Any) -> str:
    """Return a value as text for a message: one line, not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_array(value: Any, name: str) -> Any:
    """Return JAX's arrays as they are, anything else (a list, a tensor on the CPU) as NumPy's."""
    if isinstance(value, jax.Array):
        return value
    try:
        return np.asarray(value)
    except Exception as error:  # whatever somebody's own ``__array__`` raises
        kind = type(value).__name__
        raise TypeError(f"{name}: a {kind} that is no array of numbers ({error})") from error


def has_kind(array: Any, *kinds: Any) -> bool:
    """Return whether an array's dtype is of one of NumPy's kinds, such as ``jnp.floating``."""
    return any(jnp.issubdtype(array.dtype, kind) for kind in kinds)


def as_floats(value: Any, name: str, shape: tuple[int, ...] | None = None) -> Any:
    """Return a batch of images as float32, wherever its values lie; ``shape`` is the one it needs.

    Raises:
      ValueError: another shape than [batch, height, width, channels], none of them 0, or no
        floating-point numbers.
    """
    array = as_array(value, name)
    if len(array.shape) != 4 or 0 in array.shape or array.shape != (shape or array.shape):
        expected = "[batch, height, width, channels], none 0" if shape is None else shape
        raise ValueError(f"{name} has shape {array.shape}: expected {expected}")
    if not has_kind(array, jnp.floating):
        advice = " (divide by 255)" if has_kind(array, jnp.integer) else ""
        raise ValueError(
            f"{name} has dtype {array.dtype}: expected floating-point pixels in [0, 1]{advice}"
        )
    with np.errstate(over="ignore"):
        return array if array.dtype == np.float32 else array.astype(np.float32)


def as_images(images: Any, name: str = "images") -> Any:
    """Return natural images as float32 in [0, 1]: NumPy's on the host, JAX's where they are.

    Pixels that leave [0, 1] by rounding are clipped. Images that look like [batch, channels,
    height, width] give a warning.

    Raises:
      ValueError: as `as_floats`, or pixels that are not finite or not in [0, 1].
    """
    array = as_floats(images, name)
    _, first, _, last = array.shape
    if first in _CHANNELS and last not in _CHANNELS and last > first:
        warnings.warn(
            f"{name} of {last} channels look like [batch, channels, height, width] "
            "(NCHW): attacks take NHWC, [batch, height, width, channels]",
            stacklevel=2,
        )
    if isinstance(array, jax.core.Tracer):
        return array
    with jax.ensure_compile_time_eval():  # arrays that a traced function closes over have values
        low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} contains NaN or infinite pixels")
    if low < -ROUNDING or high > 1 + ROUNDING:
        advice = "let the model normalise them" if low < 0 else "divide by 255?"
        text = f"{name} lies in [{low:.9g}, {high:.9g}]: pixels must be in [0, 1]"
        raise ValueError(f"{text} ({advice})")
    return array.clip(0.0, 1.0) if low < 0 or high > 1 else array


def as_classes(
    labels: Any, batch: int | None, num_classes: int | None = None, name: str = "labels"
) -> Any:
    """Return one whole number per image, such as its class, as int32.

    They must be below ``num_classes``, if the number of the model's classes is known.

    Raises:
      ValueError: another shape than [batch], no integers, or one that is no class.
    """
    array = as_array(labels, name)
    shape = array.shape
    if len(shape) != 1 or shape[0] != (shape[0] if batch is None else batch):
        size = "batch" if batch is None else batch
        usual = f"{name}[:, 0]" if shape[1:] == (1,) else f"{name}.argmax(axis=1)"
        raise ValueError(
            f"{name} has shape {shape}: expected [{size}], one class number per image"
            + (f": use {usual}" if len(shape) == 2 else "")
        )
    if not has_kind(array, jnp.integer):
        raise ValueError(f"{name} has dtype {array.dtype}: expected integers (.astype(int)?)")
    if not isinstance(array, jax.core.Tracer) and len(array):
        with jax.ensure_compile_time_eval():
            low, high = int(array.min()), int(array.max())
        if low < 0 or high > (_LARGEST if num_classes is None else num_classes - 1):
            allowed = f"{_LARGEST}" if num_classes is None else f"{num_classes - 1}, the last class"
            raise ValueError(f"{name} lies in {low}..{high}: allowed is 0 to {allowed}")
    return array if array.dtype == np.int32 else array.astype(np.int32)


def as_flags(active: Any, batch: int, name: str = "active") -> Any:
    """Return one boolean per image; refuse anything else with a ValueError."""
    array = as_array(active, name)
    if array.shape != (batch,) or array.dtype != bool:
        found = f"shape {array.shape} and dtype {array.dtype}"
        raise ValueError(f"{name} has {found}: expected booleans [{batch}]")
    return array


def as_number(value: Any, name: str, *, most: float = math.inf, closed: bool = False) -> Any:
    """Return a real scalar (Python's, NumPy's, JAX's) as float, a traced one as it is.

    Raises:
      TypeError: no number.
      ValueError: it is not finite, negative, or above ``most``; 0 too, unless ``closed``.
    """
    array = as_array(value, name)
    if array.shape != () or not has_kind(array, jnp.floating, jnp.integer):
        raise TypeError(f"{name}={shown(value)}: expected a number")
    if isinstance(array, jax.core.Tracer):
        return value
    number = float(array)
    if not (math.isfinite(number) and 0 <= number <= most and (closed or number > 0)):
        low = "of at least 0" if closed else "above 0"
        high = "" if math.isinf(most) else f", at most {most:g}"
        raise ValueError(f"{name}={number}: expected a finite number {low}{high}")
    return number


def as_length(value: Any, name: str, most: float) -> Any:
    """Return a length on the [0, 1] pixel scale that is above 0 and at most ``most``."""
    try:
        return as_number(value, name, most=most)
    except ValueError as error:
        raise ValueError(f"{error}, on the [0, 1] pixel scale (is /255 forgotten?)") from None


def as_whole(value: Any, name: str) -> int:
    """Return a whole number of at least 1; refuse anything else with a ValueError."""
    array = as_array(value, name)
    whole = array.shape == () and has_kind(array, jnp.integer)
    if isinstance(array, jax.core.Tracer) or not whole or not 1 <= int(array) <= _LARGEST:
        raise ValueError(f"{name}={shown(value)}: expected a whole number, 1 to {_LARGEST}")
    return int(array)


def as_flag(value: Any, name: str) -> bool:
    """Return True or False; refuse anything else with a TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={shown(value)}: expected True or False")
    return bool(value)


def check_one_of(value: Any, name: str, allowed: Iterable[str]) -> None:
    """Refuse what is none of the names that are allowed, with a ValueError that lists them."""
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name}={shown(value)}: allowed are {', '.join(map(repr, names))}")


def check_callable(value: Any, name: str, expected: str) -> None:
    """Refuse what cannot be called, with a TypeError."""
    if not callable(value):
        raise TypeError(f"{name}={shown(value)}: expected {expected}")


def check_list(value: Any, name: str, kinds: Any, expected: str) -> None:
    """Refuse what is no list (or tuple) of instances of these kinds, with a TypeError."""
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not listed or not all(isinstance(entry, kinds) for entry in value):
        raise TypeError(f"{name}={shown(value)}: expected a list of {expected}")


def as_key(key: Any, name: str = "key") -> Any:
    """Return a threefry2x32 key for a key, for an old-style one, or for a seed; None stays None.

    Draws of other kinds of keys, vectorised over examples, depend on the batch (``jax.random``).

    Raises:
      TypeError: anything else.
      ValueError: more than one key, or a seed that is not in 0 to 2**32 - 1.
    """
    if key is None:
        return None
    array = as_array(key, name)
    if has_kind(array, jax.dtypes.prng_key):
        if array.shape:
            raise ValueError(f"{name} has shape {array.shape}: expected a single key")
        return _as_threefry(array)
    if array.dtype == np.uint32 and array.shape in ((2,), (4,)):
        kind = {2: _THREEFRY, 4: "rbg"}[array.shape[0]]
        return _as_threefry(jax.random.wrap_key_data(jnp.asarray(array), impl=kind))
    if array.shape == () and has_kind(array, jnp.integer):
        if not isinstance(array, jax.core.Tracer) and not 0 <= int(array) < 2**32:
            raise ValueError(f"{name}={shown(key)}: a seed is a whole number, 0 to {2**32 - 1}")
        return jax.random.key(array, impl=_THREEFRY)
    raise TypeError(f"{name}={shown(key)}: expected jax.random.key(seed), or a seed")


def _as_threefry(key: Key[Array, ""]) -> Key[Array, ""]:
    """Return the key, or one derived from all that is in it."""
    if jax.random.key_impl(key) == _THREEFRY:
        return key
    derived = jax.random.key(0, impl=_THREEFRY)
    for word in jax.random.key_data(key):
        derived = jax.random.fold_in(derived, word)
    return derived
