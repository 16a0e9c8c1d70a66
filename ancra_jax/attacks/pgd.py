"""Projected gradient descent, and FGSM as its one-step case."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ancra_jax.attacks.gradients import value_and_input_gradient
from ancra_jax.attacks.loop import LoopKind, iterate
from ancra_jax.attacks.model import AnyImages, AnyLabels, Images, example_keys
from ancra_jax.attacks.objectives import Objective
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.attacks.validation import check_images

Tree = TypeVar("Tree")


def gaussian_start(keys: Key[Array, "batch"], images: Images, sigma: float = 0.001) -> Images:
    """``images + sigma * N(0, 1)``, the start of the attacks inside TRADES-like training.

    Not clipped, as in the reference implementations: the first step's projection is the first one.

    Args:
      keys: one key per example (see ``attacks.model.example_keys``).
      images: natural images.
      sigma: standard deviation on the [0, 1] pixel scale.
    """
    noise = jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys, images)
    return images + sigma * noise


def pgd(
    objective: Objective,
    images: AnyImages,
    threat_model: ThreatModel,
    *,
    step_size: float | int | Float[Array, ""],
    num_steps: int,
    start: AnyImages | None = None,
    key: Key[Array, ""] | None = None,
    indices: AnyLabels | None = None,
    loop: LoopKind = "auto",
) -> Images:
    """Ascends ``objective`` inside the threat model.

    Every step is ``x <- project(x + step_size * direction(gradient))``; the last iterate is
    returned, whether it fools the model or not (judge it by ``attacks.is_adversarial``). Works
    inside a jitted training step as well as alone; no gradient flows through the attack.

    Args:
      objective: see ``attacks.objectives``.
      images: natural images, pixels in [0, 1].
      threat_model: ``Linf(epsilon)`` or ``L2(epsilon)``.
      step_size: length of a step in the threat model's norm, on the [0, 1] pixel scale.
      num_steps: number of steps.
      start: where to start; taken as it is.
      key: if given, and no ``start``, the attack starts at a random point of the threat model.
        Without either it starts at the natural image.
      indices: data-set indices, from which (and from ``key``) the random starts are derived;
        0, 1, 2 ... by default.
      loop: see ``attacks.loop.iterate``.

    Returns:
      Images in the ball and in [0, 1].

    Raises:
      ValueError: images that are not floating-point in [0, 1], a step size or a number of steps
        that is not positive, a start of another shape.
    """
    check_images(images)
    if isinstance(step_size, (int, float)) and not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size={step_size}: must be finite and > 0, on the [0, 1] scale")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: must be at least 1")
    natural = jnp.asarray(images)
    if start is not None:
        if start.shape != natural.shape:
            raise ValueError(f"start has shape {start.shape}, images {natural.shape}")
        first = jnp.asarray(start)
    elif key is not None:
        numbers = jnp.arange(len(natural)) if indices is None else jnp.asarray(indices)
        first = threat_model.random_start(example_keys(key, numbers), natural)
    else:
        first = natural
    objective, natural, first = _frozen((objective, natural, first))
    return iterate(
        _step, first, objective, natural, threat_model, step_size, num_steps=num_steps, loop=loop
    )


def fgsm(
    objective: Objective, images: AnyImages, threat_model: ThreatModel, *, loop: LoopKind = "auto"
) -> Images:
    """The fast gradient sign method: one PGD step of length epsilon from the natural image.

    Args:
      objective: see ``attacks.objectives``.
      images: natural images, pixels in [0, 1].
      threat_model: ``Linf(epsilon)``; under ``L2`` the step follows the normalised gradient.
      loop: see ``attacks.loop.iterate``.
    """
    return pgd(
        objective, images, threat_model, step_size=threat_model.epsilon, num_steps=1, loop=loop
    )


def _step(i, x, objective, natural, threat_model, step_size):
    _, gradients = value_and_input_gradient(objective, x)
    return threat_model.project(x + step_size * threat_model.direction(gradients), natural)


def _frozen(tree: Tree) -> Tree:
    """Stops gradients through every floating-point leaf: an adversarial image is data."""

    def freeze(leaf):
        if isinstance(leaf, jax.core.Tracer) and jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.lax.stop_gradient(leaf)
        return leaf

    return jax.tree.map(freeze, tree)
