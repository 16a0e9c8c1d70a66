"""What attacks take, checked on the host before anything is compiled, and what they return.

Under a transformation (an attack inside a jitted training step) there are no values to look at:
then only shapes and dtypes are checked.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax.attacks.model import Model, as_pytree
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.ops.images import Flags, Images, Labels, Values
from ancra_jax.ops.pytree import select


class AttackResult(NamedTuple):
    """What one attack did to every example.

    Attributes:
      images: an adversarial image where ``success``, the natural image elsewhere.
      success: whether the attack found a misclassified image inside the threat model.
      best_loss: the largest value of the ascended objective (``fgsm`` and ``pgd``: at the last
        iterate; ``fab``: minus the smallest norm of a misclassified image, ``-inf`` without one).
        ``-inf`` where the example was not attacked.
      queries: forward passes spent on the example; 0 where it was not attacked.
    """

    images: Images
    success: Flags
    best_loss: Values
    queries: Labels

    def __repr__(self) -> str:
        """Return a summary of a few lines, without pixels."""
        text = f"AttackResult:\n  images: {self.images.dtype}{list(self.images.shape)}"
        if isinstance(self.success, jax.core.Tracer | jax.ShapeDtypeStruct):  # no values yet
            return text
        return f"{text}\n  success: {int(np.sum(self.success))} of {len(self.success)}"


class Problem(NamedTuple):
    """What an attack works on, checked, as pytrees and arrays that ``jit`` takes."""

    model: Model  # a pytree, see ``attacks.model.as_pytree``
    images: Images  # natural images
    labels: Labels  # int32, as are the targets
    targets: Labels | None
    active: Flags  # which examples to attack
    threat_model: ThreatModel

    def result(self, success: Flags, found: Images, best_loss: Any, queries: Any) -> AttackResult:
        """Return what the attack found, with the examples that it was not to attack taken out."""
        success = success & self.active
        return AttackResult(
            images=select(success, found, self.images),
            success=success,
            best_loss=jnp.where(self.active, best_loss, -jnp.inf),
            queries=jnp.where(self.active, queries, 0),
        )


def checked(
    model: Any,
    images: Any,
    labels: Any,
    threat_model: Any,
    targets: Any,
    active: Any,
    indices: Any,
    start: Any = None,
) -> tuple[Problem, Labels, Images | None]:
    """Check the arguments that attacks have in common, as the user gave them, and convert them.

    Every attack calls this first. ``ancra_jax.attacks`` describes the arguments and the errors;
    ``start`` has the images' shape and is taken as it is.

    Returns:
      The problem, the indices and the start.
    """
    check_batch(images, labels, targets=targets, indices=indices)
    batch = len(images)
    if not isinstance(threat_model, ThreatModel):
        raise TypeError(f"threat_model={threat_model!r}: expected Linf(epsilon) or L2(epsilon)")
    if active is not None and (np.shape(active) != (batch,) or active.dtype != bool):
        found = f"shape {np.shape(active)} and dtype {active.dtype}"
        raise ValueError(f"active has {found}: expected booleans [{batch}]")
    if start is not None and np.shape(start) != np.shape(images):
        raise ValueError(f"start has shape {np.shape(start)}, images {np.shape(images)}")
    classes = jnp.asarray(labels, jnp.int32)
    problem = Problem(
        model=as_pytree(model),
        images=jnp.asarray(images),
        labels=classes,
        targets=None if targets is None else jnp.asarray(targets, jnp.int32),
        active=jnp.ones_like(classes, bool) if active is None else jnp.asarray(active),
        threat_model=threat_model,
    )
    numbers = jnp.arange(batch) if indices is None else jnp.asarray(indices)
    return problem, numbers, None if start is None else jnp.asarray(start)


def check_batch(images: Any, labels: Any, **numbers: Any) -> None:
    """Refuse images, labels or other numbers per image (None: not given), with a ValueError."""
    check_images(images)
    check_labels(labels, len(images))
    for name, given in numbers.items():
        if given is not None:
            check_labels(given, len(images), name=name)


def check_images(images: Any) -> None:
    """Refuse what is not a batch of floating-point images in [0, 1], with a ValueError."""
    shape = np.shape(images)
    if len(shape) != 4:
        raise ValueError(f"images has shape {shape}: expected [batch, height, width, channels]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images has dtype {images.dtype}: expected floating-point pixels in [0, 1]"
            + (" (divide by 255)" if images.dtype == np.uint8 else "")
        )
    if isinstance(images, jax.core.Tracer) or 0 in shape:
        return
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("images contains NaN or infinite pixels")
    if low < 0 or high > 1:
        raise ValueError(f"images lies in [{low:g}, {high:g}]: pixels must be in [0, 1]")


def check_labels(
    labels: Any, batch: int, num_classes: int | None = None, name: str = "labels"
) -> None:
    """Refuse what is not one whole number of at least 0 per image, with a ValueError.

    Labels must be below ``num_classes``, if the number of the model's classes is known.
    """
    if np.shape(labels) != (batch,):
        raise ValueError(f"{name} has shape {np.shape(labels)}: expected [{batch}]")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {labels.dtype}: expected integers")
    if isinstance(labels, jax.core.Tracer) or batch == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "" if num_classes is None else f" to {num_classes - 1}, the model's last class"
        raise ValueError(f"{name} lies in {low}..{high}: allowed is 0{allowed or ' or more'}")


def check_positive_int(value: Any, name: str) -> None:
    """Refuse what is not a whole number of at least 1, with a ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
