"""FMN: the fast minimum-norm attack, which looks for the *smallest* adversarial perturbation.

Steps along the margin's gradient are projected onto a ball around the natural image that shrinks
while the point is misclassified and grows while it is not. A step costs one gradient, also where
no target is given.

References:
  Pintor, Roli, Brendel & Biggio, Fast minimum-norm adversarial attacks through adaptive norm
  constraints, NeurIPS 2021, algorithm 1.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ancra_jax.attacks.arguments import AnyKey, Number, as_flag, as_number, as_whole
from ancra_jax.attacks.fab import distance_to_hyperplane
from ancra_jax.attacks.loop import LoopKind, iterate
from ancra_jax.attacks.model import Model, misclassified
from ancra_jax.attacks.objectives import Evaluator, evaluator
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import ThreatModel, norm_of
from ancra_jax.attacks.validation import AttackResult, Problem, checked
from ancra_jax.ops.images import AnyFlags, AnyImages, AnyLabels, Images, Values
from ancra_jax.ops.pytree import select

_LAST_STEP_SIZE = 0.01  # relative to the first
_LAST_GAMMA = 0.02  # relative to the first


class FmnState(NamedTuple):
    """What a step changes."""

    point: Images  # the current point
    best: Images  # the closest misclassified image so far; the natural image without one
    best_norm: Values  # its norm, infinite without one
    radius: Values  # of the ball that the next point lies in


@explains_old_calls
def fmn(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    key: AnyKey | None = None,
    indices: AnyLabels | None = None,
    targets: AnyLabels | None = None,
    num_steps: int = 200,
    step_size: Number = 1.0,
    gamma: Number = 0.05,
    active: AnyFlags | None = None,
    loop: LoopKind = "auto",
    return_outside: bool = False,
) -> AttackResult:
    """Look for the closest misclassified image of every example; the result is as ``fab``'s.

    The search does not know epsilon. Nothing is random: ``key`` and ``indices`` are not used.
    ``ancra_jax.attacks`` describes the common arguments.

    Args:
      threat_model: ``Linf``, ``L2`` or ``L1``: the norm to make small, and the epsilon that decides
        ``success``.
      targets: the classes whose boundary is sought; any misclassification counts.
      num_steps: gradient steps.
      step_size: Euclidean length of the first step, on the [0, 1] pixel scale; it falls to a
        hundredth along a cosine.
      gamma: by which part of itself the first step changes the radius of the ball, at most 1; it
        falls to a fiftieth.
      return_outside: return the closest misclassified image even where it lies outside the ball;
        ``success`` still says whether its norm is at most epsilon.
    """
    num_steps = as_whole(num_steps, "num_steps")
    lengths = as_number(step_size, "step_size"), as_number(gamma, "gamma", most=1.0)
    as_flag(return_outside, "return_outside")
    common = dict(targets=targets, active=active, indices=indices, key=key)
    loss = "margin" if targets is None else "targeted_margin"
    inputs = checked(model, images, labels, threat_model, loop=loop, loss=loss, **common)
    problem = inputs.problem
    norm_of(threat_model)
    evaluate = evaluator(inputs.objective, problem.model)
    infinite = jnp.full(len(problem.images), jnp.inf, jnp.float32)
    state = FmnState(problem.images, problem.images, infinite, infinite)
    # The last iteration judges the last point, its own step is not looked at.
    operands = (problem, evaluate, jnp.int32(num_steps), *lengths)
    state = iterate(_step, state, *operands, num_steps=num_steps + 1, loop=loop)
    return problem.closest(state.best, state.best_norm, num_steps + 1, return_outside)


def _step(
    i: Int[Array, ""],
    state: FmnState,
    problem: Problem,
    evaluate: Evaluator,
    num_steps: Int[Array, ""],
    step_size: Number,
    gamma: Number,
) -> FmnState:
    """Judge the current point, change the radius, and move."""
    natural, ball = problem.images, problem.threat_model
    point = state.point
    values, gradients, logits = evaluate(point, i)
    fooled = misclassified(logits, problem.labels)
    norm = ball.norm(point - natural)
    found_before = jnp.isfinite(state.best_norm)
    closer = fooled & (norm < state.best_norm)
    best_norm = jnp.where(closer, norm, state.best_norm)

    change = gamma * _cosine(i, num_steps, _LAST_GAMMA)
    distance = distance_to_hyperplane(gradients.reshape(len(norm), -1), values, ball)
    # Up to the boundary alone, a linear model would never be fooled.
    grown = jnp.where(found_before, state.radius, norm + distance) * (1 + change)
    radius = jnp.where(fooled, jnp.minimum(state.radius * (1 - change), best_norm), grown)

    length = jnp.sqrt(jnp.sum(jnp.square(gradients), axis=(1, 2, 3), keepdims=True))
    step = step_size * _cosine(i, num_steps, _LAST_STEP_SIZE) * gradients
    moved = point + step / jnp.maximum(length, 1e-12)
    return FmnState(
        point=_project(ball, moved, natural, radius),
        best=select(closer, point, state.best),
        best_norm=best_norm,
        radius=radius,
    )


def _cosine(i: Int[Array, ""], num_steps: Int[Array, ""], last: float) -> Float[Array, ""]:
    """Return a factor that falls from 1 to ``last`` along half a cosine."""
    return last + (1 - last) * (1 + jnp.cos(jnp.pi * i / num_steps)) / 2


def _project(ball: ThreatModel, points: Images, natural: Images, radii: Values) -> Images:
    """Project every point into a ball of its own radius, and into [0, 1]."""

    def one(x: Any, center: Any, radius: Float[Array, ""]) -> Any:
        own: Any = replace(ball, epsilon=radius)  # type: ignore[type-var]
        return own.project(x[None], center[None])[0]

    return jax.vmap(one)(points, natural, radii)
