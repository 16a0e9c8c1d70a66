"""Auto-PGD: projected gradient ascent with momentum that halves its own step size.

References:
  Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
  parameter-free attacks, ICML 2020, section 3. Details follow the authors' published code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ancra_jax.attacks.gradients import Evaluator, RandomizedEvaluator, evaluator
from ancra_jax.attacks.loop import LoopKind, iterate
from ancra_jax.attacks.model import (
    AnyFlags,
    AnyImages,
    AnyLabels,
    Images,
    Model,
    example_keys,
    fold_each,
    misclassified,
)
from ancra_jax.attacks.objectives import LogitsObjective, Objective, objective_of
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import ThreatModel, at_distance
from ancra_jax.attacks.types import AttackResult
from ancra_jax.attacks.validation import checked
from ancra_jax.ops.images import per_image, select

MOMENTUM = 0.75
_WINDOWS_SHAPE = 256


class ApgdState(NamedTuple):
    """What the loop carries from step to step.

    Attributes:
      images: the current iterates.
      previous: the iterates before them.
      gradients: gradients at ``images``.
      adversarial: the last misclassified iterate of every example, else its natural image.
      fooled: whether any iterate was misclassified.
      best_images: the iterates of largest objective.
      best_gradients: gradients there.
      best_loss: the largest objective.
      last_loss: the objective at ``images``; 0 before the first step, as in the reference, whose
        first step therefore counts as a rise when the objective is positive.
      rises: in how many steps of the current window the objective rose.
      checked_loss: ``best_loss`` at the previous checkpoint.
      halved: whether the step size was halved there.
      step_size: the current step size of every example.
    """

    images: Images
    previous: Images
    gradients: Images
    adversarial: Images
    fooled: Bool[Array, "batch"]
    best_images: Images
    best_gradients: Images
    best_loss: Float[Array, "batch"]
    last_loss: Float[Array, "batch"]
    rises: Int[Array, "batch"]
    checked_loss: Float[Array, "batch"]
    halved: Bool[Array, "batch"]
    step_size: Float[Array, "batch"]


def checkpoint_windows(num_steps: int) -> np.ndarray:
    """For every step the length of the window that ends with it, 0 where none does.

    For 100 steps windows of 22, 19, 16, 13, 10, 7, 6, 6 end after steps 22, 41, ... 99. Entry 0
    belongs to the start.
    """
    windows = np.zeros(num_steps + 1, np.int32)
    window = max(int(0.22 * num_steps), 1)
    shortest = max(int(0.06 * num_steps), 1)
    shrink = max(int(0.03 * num_steps), 1)
    end = window
    while end <= num_steps:
        windows[end] = window
        window = max(window - shrink, shortest)
        end += window
    return windows


def run_apgd(
    evaluate: Evaluator | RandomizedEvaluator,
    start: Images,
    natural: Images,
    labels: Int[Array, "batch"],
    threat_model: ThreatModel,
    *,
    num_steps: int = 100,
    rho: float = 0.75,
    stop_after: int | None = None,
    loop: LoopKind = "auto",
) -> ApgdState:
    """One run of Auto-PGD from a given start; see ``apgd``.

    Args:
      evaluate: the objective and the model whose misclassification counts.
      start: the first iterates.
      natural: natural images.
      labels: class numbers.
      threat_model: the ball around ``natural``.
      num_steps: gradient steps.
      rho: see ``apgd``.
      stop_after: take only so many of the steps; 0 evaluates the start.
      loop: see ``attacks.loop.iterate``.

    Returns:
      The final state of the loop.
    """
    steps = num_steps if stop_after is None else stop_after
    return iterate(
        _step,
        _initial_state(start, natural, threat_model),
        evaluate,
        natural,
        labels,
        threat_model,
        _padded_windows(num_steps),
        rho,
        num_steps=steps + 1,
        loop=loop,
    )


def _padded_windows(num_steps):
    """The windows with zeros behind them: runs of other lengths share one compiled step."""
    windows = checkpoint_windows(num_steps)
    return jnp.asarray(np.pad(windows, (0, -len(windows) % _WINDOWS_SHAPE)))


@jax.jit
def _initial_state(start, natural, threat_model):
    batch = len(start)
    lowest = jnp.full(batch, -jnp.inf)
    return ApgdState(
        images=start,
        previous=start,
        gradients=jnp.zeros_like(start),
        adversarial=natural,
        fooled=jnp.zeros(batch, bool),
        best_images=start,
        best_gradients=jnp.zeros_like(start),
        best_loss=lowest,
        last_loss=lowest,
        rises=jnp.zeros(batch, jnp.int32),
        checked_loss=lowest,
        halved=jnp.ones(batch, bool),
        step_size=jnp.full(batch, 2.0) * threat_model.epsilon,
    )


def _step(i, state, evaluate, natural, labels, threat_model, windows, rho):
    """Iteration 0 evaluates the start, so that the network is compiled for the loop alone."""
    is_start = i == 0
    images = jnp.where(is_start, state.images, _move(i, state, natural, threat_model))
    values, gradients, logits = evaluate(images, i)
    fooled = misclassified(logits, labels)
    better = is_start | (values > state.best_loss)
    state = state._replace(
        images=images,
        previous=state.images,
        gradients=gradients,
        adversarial=select(fooled, images, state.adversarial),
        fooled=state.fooled | fooled,
        best_images=select(better, images, state.best_images),
        best_gradients=select(better, gradients, state.best_gradients),
        best_loss=jnp.where(better, values, state.best_loss),
        last_loss=jnp.where(is_start, 0.0, values),
        rises=state.rises + (~is_start & (values > state.last_loss)),
        checked_loss=jnp.where(is_start, values, state.checked_loss),
    )
    return _end_window(state, windows[i], rho)


def _move(i, state, natural, threat_model):
    """A projected step, averaged with the previous displacement; the first has no momentum."""
    direction = threat_model.direction(state.gradients)
    stepped = threat_model.project(state.images + per_image(state.step_size) * direction, natural)
    weight = jnp.where(i == 1, 1.0, MOMENTUM)
    moved = (
        state.images
        + weight * (stepped - state.images)
        + (1 - weight) * (state.images - state.previous)
    )
    return threat_model.project(moved, natural)


def _end_window(state, window, rho):
    """At a checkpoint (``window`` > 0), halves step sizes and restarts from the best point.

    An example is halved if its objective rose too rarely, or if it was not halved at the previous
    checkpoint and its best objective has not improved since. ``previous`` is not reset.
    """
    ends = window > 0
    too_rarely = state.rises <= rho * window
    stalled = ~state.halved & (state.checked_loss >= state.best_loss)
    halve = ends & (too_rarely | stalled)
    return state._replace(
        images=select(halve, state.best_images, state.images),
        gradients=select(halve, state.best_gradients, state.gradients),
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        rises=jnp.where(ends, 0, state.rises),
        checked_loss=jnp.where(ends, state.best_loss, state.checked_loss),
        halved=jnp.where(ends, halve, state.halved),
    )


@explains_old_calls
def apgd(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    loss: str | Objective = "ce",
    targets: AnyLabels | None = None,
    key: Key[Array, ""] | None = None,
    indices: AnyLabels | None = None,
    num_steps: int = 100,
    num_restarts: int = 1,
    rho: float = 0.75,
    start: AnyImages | None = None,
    active: AnyFlags | None = None,
    randomized: bool = False,
    gradient_draws: int = 1,
    loop: LoopKind = "auto",
) -> AttackResult:
    """Runs Auto-PGD.

    Args:
      model: see ``attacks.model.Model``; the final logits decide on success.
      images: natural images, pixels in [0, 1].
      labels: class numbers. Any other prediction is a success, with targets as well.
      threat_model: ``Linf(epsilon)`` or ``L2(epsilon)``.
      loss: ``'ce'``, ``'dlr'``, ``'margin'``; with targets ``'targeted_dlr'``,
        ``'targeted_margin'``; or any objective ``images -> [batch]`` to ascend.
      targets: class numbers for the targeted losses.
      key: source of the random starts; may be left out if ``start`` is given.
      indices: data-set indices, from which (and from ``key``) every example's randomness is
        derived; 0, 1, 2 ... by default.
      num_steps: gradient steps of a run.
      num_restarts: runs; the examples fooled by one keep its result.
      rho: the step size is halved if the objective rose in at most this share of a window's steps.
      start: where the first run starts; at random on the ball's surface if None.
      active: examples to attack; the others are returned as they are.
      randomized: the model draws its own randomness and is called as
        ``model(images, key=key)``, one example and key at a time (vectorised).
      gradient_draws: gradients averaged in a step of a randomised model (EOT).
      loop: see ``attacks.loop.iterate``.

    Returns:
      Adversarial images where the attack succeeded; ``best_loss`` is the objective's maximum.

    Raises:
      ValueError: bad images, labels, targets or settings.
    """
    drawn = start is None or num_restarts > 1 or randomized
    problem = checked(
        model,
        images,
        labels,
        threat_model,
        key,
        indices,
        active,
        targets,
        loop,
        start=start,
        random="random starts and randomised models" if drawn else "",
        num_steps=num_steps,
        num_restarts=num_restarts,
        gradient_draws=gradient_draws,
    )
    model, natural, labels, active = problem.model, problem.images, problem.labels, problem.active
    batch = len(natural)
    keys = example_keys(problem.key, problem.indices)
    objective = objective_of(loss, model, labels, problem.targets)
    draws = gradient_draws if randomized else 1

    result = AttackResult(
        images=natural,
        success=jnp.zeros(batch, bool),
        best_loss=jnp.full(batch, -jnp.inf),
        queries=jnp.where(active, num_restarts * draws * (num_steps + 1), 0),
    )
    for restart in range(num_restarts):
        run_keys = fold_each(keys, restart)
        first = problem.start if restart == 0 else None
        if first is None:
            first = surface_start(threat_model, run_keys, natural)
        evaluate: Evaluator | RandomizedEvaluator = evaluator(objective, model)
        if randomized:
            evaluate = _randomized(objective, fold_each(run_keys, 0), draws)
        state = run_apgd(
            evaluate,
            first,
            natural,
            labels,
            threat_model,
            num_steps=num_steps,
            rho=rho,
            loop=loop,
        )
        found = state.fooled & active & ~result.success
        result = result._replace(
            images=select(found, state.adversarial, result.images),
            success=result.success | found,
            best_loss=jnp.where(
                active, jnp.maximum(result.best_loss, state.best_loss), result.best_loss
            ),
        )
    return result


def _randomized(objective: Objective, keys: Key[Array, "batch"], draws: int) -> RandomizedEvaluator:
    if not isinstance(objective, LogitsObjective):
        raise ValueError(f"loss={objective!r}: a randomised model needs one of the named losses")
    return RandomizedEvaluator(objective, keys, draws)


@jax.jit
def surface_start(threat_model: ThreatModel, keys: Key[Array, "batch"], natural: Images) -> Images:
    """Random points at distance epsilon, clipped to [0, 1]."""
    noise = threat_model.noise(keys, natural)
    return at_distance(threat_model, natural, noise, threat_model.epsilon)
