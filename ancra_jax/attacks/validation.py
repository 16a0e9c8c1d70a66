"""Checks at the attacks' public entry points, on the host, before anything is compiled.

Under a transformation (an attack inside a jitted training step) there are no values to look at:
then only shapes and dtypes are checked.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ancra_jax.attacks.model import Images, LogitsFn, as_pytree, read_outputs


def check_images(images, name: str = "images") -> None:
    """Refuses what is not a batch of floating-point images in [0, 1].

    Raises:
      ValueError: naming what is wrong.
    """
    if np.ndim(images) != 4:
        raise ValueError(
            f"{name} has shape {np.shape(images)}: expected [batch, height, width, channels]"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {images.dtype}: expected floating-point pixels in [0, 1]"
            + (" (divide by 255)" if images.dtype == np.uint8 else "")
        )
    if isinstance(images, jax.core.Tracer) or 0 in np.shape(images):
        return
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} contains NaN or infinite pixels")
    if low < 0 or high > 1:
        raise ValueError(f"{name} lies in [{low:g}, {high:g}]: pixels must be in [0, 1]")


def check_labels(labels, batch: int, num_classes: int | None = None, name: str = "labels") -> None:
    """Refuses what is not one class number per image.

    Raises:
      ValueError: naming what is wrong.
    """
    if np.ndim(labels) != 1 or np.shape(labels)[0] != batch:
        raise ValueError(f"{name} has shape {np.shape(labels)}: expected [{batch}]")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {labels.dtype}: expected integer class numbers")
    if isinstance(labels, jax.core.Tracer) or batch == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "" if num_classes is None else f" to {num_classes - 1}, the model's last class"
        raise ValueError(f"{name} lies in {low}..{high}: class numbers go from 0{allowed}")


def check_positive_int(value, name: str) -> None:
    """Refuses what is not a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")


def check_logits(logits, batch: int) -> None:
    """Refuses what is not a batch of finite logits over at least two classes.

    Raises:
      ValueError: naming what is wrong.
    """
    if np.ndim(logits) != 2 or np.shape(logits)[0] != batch or np.shape(logits)[1] < 2:
        raise ValueError(
            f"the model returned logits of shape {np.shape(logits)} for {batch} images: expected "
            f"[{batch}, classes] with at least 2 classes"
        )
    if isinstance(logits, jax.core.Tracer):
        return
    bad = np.flatnonzero(~np.isfinite(np.asarray(logits, np.float32)).all(axis=-1))
    if bad.size:
        raise ValueError(
            f"the model's logits are NaN or infinite on {bad.size} of {batch} clean images "
            f"(first: image {bad[0]}): no attack can judge such a model"
        )


def clean_logits(logits_fn: LogitsFn, images, labels):
    """Runs all checks of one batch and returns the clean logits, float32 [batch, classes].

    Raises:
      ValueError: on images, labels or logits that no attack can work with.
    """
    check_images(images)
    logits = forward(as_pytree(logits_fn), jnp.asarray(images))
    check_logits(logits, len(images))
    check_labels(labels, len(images), logits.shape[-1])
    return logits


@jax.jit
def forward(logits_fn: LogitsFn, images: Images) -> Float[Array, "batch classes"]:
    """The model's logits, float32.

    Raises:
      ValueError: they are not [batch, classes] with at least 2 classes.
    """
    outputs = logits_fn(images)
    check_logits(getattr(outputs, "logits", outputs), len(images))
    return read_outputs(outputs)[0]
