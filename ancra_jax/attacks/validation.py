"""Checks at the attacks' public entry points, on the host, before anything is compiled.

Under a transformation (an attack inside a jitted training step) there are no values to look at:
then only shapes and dtypes are checked.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ancra_jax.attacks.loop import check_loop
from ancra_jax.attacks.model import Images, Model, as_pytree, read_outputs
from ancra_jax.attacks.threat_models import ThreatModel


class Problem(NamedTuple):
    """What an attack works on, checked, as arrays and pytrees that ``jit`` takes.

    Attributes:
      model: a pytree; see ``attacks.model.as_pytree``.
      images: natural images.
      labels: class numbers, int32.
      threat_model: the ball around every image.
      key: source of all randomness; a fixed one where the call needed none.
      indices: data-set indices.
      active: which examples to attack.
      targets: class numbers, int32, or None.
      start: the first iterates, or None.
    """

    model: Model
    images: Images
    labels: Int[Array, "batch"]
    threat_model: ThreatModel
    key: Key[Array, ""]
    indices: Int[Array, "batch"]
    active: Bool[Array, "batch"]
    targets: Int[Array, "batch"] | None
    start: Images | None


def checked(
    model: Model,
    images: Any,
    labels: Any,
    threat_model: Any,
    key: Key[Array, ""] | None,
    indices: Any,
    active: Any,
    targets: Any,
    loop: str,
    *,
    start: Any = None,
    random: str = "",
    **counts: int,
) -> Problem:
    """Check the arguments that attacks have in common, and convert them.

    The arguments come as the user gave them; ``ancra_jax.attacks`` describes them, but for these:

    Args:
      start: the first iterates, of the images' shape; taken as they are.
      random: what in this call draws random numbers, for the error where ``key`` is None.
      **counts: further arguments that must be whole numbers of at least 1, by name.

    Raises:
      TypeError: ``threat_model`` is not one.
      ValueError: another argument is not allowed; the message names it.
    """
    check_images(images)
    batch = len(images)
    check_labels(labels, batch)
    if not isinstance(threat_model, ThreatModel):
        raise TypeError(f"threat_model={threat_model!r}: expected Linf(epsilon) or L2(epsilon)")
    for name, numbers in (("targets", targets), ("indices", indices)):
        if numbers is not None:
            check_labels(numbers, batch, name=name)
    if active is not None and (np.shape(active) != (batch,) or active.dtype != bool):
        raise ValueError(
            f"active has shape {np.shape(active)} and dtype {active.dtype}: expected [{batch}] bool"
        )
    if start is not None and np.shape(start) != np.shape(images):
        raise ValueError(f"start has shape {np.shape(start)}, images {np.shape(images)}")
    if key is None and random:
        raise ValueError(f"key=None: {random} need a key, such as jax.random.key(0)")
    check_loop(loop)
    for name, count in counts.items():
        check_positive_int(count, name)
    return Problem(
        model=as_pytree(model),
        images=jnp.asarray(images),
        labels=jnp.asarray(labels, jnp.int32),
        threat_model=threat_model,
        key=jax.random.key(0) if key is None else key,
        indices=jnp.arange(batch) if indices is None else jnp.asarray(indices),
        active=jnp.ones(batch, bool) if active is None else jnp.asarray(active),
        targets=None if targets is None else jnp.asarray(targets, jnp.int32),
        start=None if start is None else jnp.asarray(start),
    )


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


@jax.jit
def forward(model: Model, images: Images) -> Float[Array, "batch classes"]:
    """The model's logits, float32.

    Raises:
      ValueError: they are not [batch, classes] with at least 2 classes.
    """
    outputs = model(images)
    check_logits(getattr(outputs, "logits", outputs), len(images))
    return read_outputs(outputs)[0]
