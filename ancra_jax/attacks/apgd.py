"""Auto-PGD: projected gradient ascent with momentum that halves its own step size.

References:
  Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
  parameter-free attacks, ICML 2020, section 3. Details follow the authors' published code. Under
  L1 the steps are other ones: ``attacks.sparse_apgd``.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ancra_jax.attacks.arguments import AnyKey, Number, as_flag, as_number, as_whole
from ancra_jax.attacks.loop import LoopKind, Part, gradients_of, iterate
from ancra_jax.attacks.model import Model, fold_each, misclassified
from ancra_jax.attacks.objectives import (
    Evaluation,
    Evaluator,
    Objective,
    evaluator,
    in_one_program,
)
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.sparse_apgd import WIDEST, SparseState, best_of, evaluations, run_sparse_apgd
from ancra_jax.attacks.threat_models import L1, ThreatModel, at_distance
from ancra_jax.attacks.validation import AttackResult, check_inside, checked
from ancra_jax.ops.images import AnyFlags, AnyImages, AnyLabels, Flags, Images, Keys, Labels, Values
from ancra_jax.ops.pytree import select

MOMENTUM = 0.75
_WINDOWS_SHAPE = 256


class ApgdState(NamedTuple):
    """What the loop carries from step to step."""

    images: Images  # the current iterates
    previous: Images  # the iterates before them
    gradients: Images  # at ``images``
    adversarial: Images  # the last misclassified iterate of every example, else its natural image
    fooled: Flags  # whether any iterate was misclassified
    best_images: Images  # the iterates of largest objective
    best_gradients: Images  # gradients there
    best_loss: Values  # the largest objective
    # The objective at ``images``; 0 before the first step, as in the reference, whose first step
    # therefore counts as a rise when the objective is positive.
    last_loss: Values
    rises: Labels  # in how many steps of the current window the objective rose
    checked_loss: Values  # ``best_loss`` at the previous checkpoint
    halved: Flags  # whether the step size was halved there
    step_size: Values  # the current step size of every example


@explains_old_calls
def apgd(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    loss: str | Objective = "ce",
    targets: AnyLabels | None = None,
    key: AnyKey | None = None,
    indices: AnyLabels | None = None,
    num_steps: int = 100,
    num_restarts: int = 1,
    rho: Number = 0.75,
    start: AnyImages | None = None,
    active: AnyFlags | None = None,
    randomized: bool = False,
    gradient_draws: int = 1,
    loop: LoopKind = "auto",
) -> AttackResult:
    """Run Auto-PGD. ``ancra_jax.attacks`` describes the common arguments.

    Args:
      key: source of the random starts; may be None if the only run has a ``start``.
      num_steps: gradient steps of a run.
      num_restarts: runs; the examples fooled by one keep its result.
      rho: the step size is halved if the objective rose in at most this share of a window's steps.
        Without effect under ``L1``.
      start: where the first run starts; at random on the ball's surface if None. Under ``L1`` the
        run passes through larger balls first, whatever the start.
      randomized: the model draws its own randomness and is called as
        ``model(images, key=key)``, one example and key at a time (vectorised).
      gradient_draws: gradients averaged in a step of a randomised model (EOT).
    """
    num_steps = as_whole(num_steps, "num_steps")
    num_restarts = as_whole(num_restarts, "num_restarts")
    gradient_draws = as_whole(gradient_draws, "gradient_draws")
    randomized = as_flag(randomized, "randomized")
    rho = as_number(rho, "rho", most=1.0, closed=True)
    if key is None and (start is None or num_restarts > 1 or randomized):
        raise ValueError("key=None: random starts and randomised models need a key")
    common = dict(targets=targets, active=active, indices=indices, key=key, start=start)
    how = dict(loop=loop, loss=loss, randomized=randomized)
    inputs = checked(model, images, labels, threat_model, **how, **common)
    problem, first, keys = inputs.problem, inputs.start, inputs.keys()
    objective = in_one_program(inputs.objective)
    if first is not None:
        check_inside(first, problem)
    natural, labels, threat_model = problem.images, problem.labels, problem.threat_model
    found: Any = None
    for restart in range(num_restarts):
        run_keys = fold_each(keys, restart)
        if first is None or restart > 0:
            first = surface_start(threat_model, run_keys, natural)
        drawn = fold_each(run_keys, 0) if randomized else None
        evaluate = evaluator(objective, problem.model, drawn, gradient_draws)
        state = run_apgd(
            evaluate, first, natural, labels, threat_model, num_steps=num_steps, rho=rho, loop=loop
        )
        last = (state.fooled, state.adversarial, state.best_loss)
        found = last if found is None else _both(found, last)
    a_run = evaluations(num_steps) if isinstance(threat_model, L1) else 1 + num_steps
    queries = num_restarts * (gradient_draws if randomized else 1) * a_run
    fooled, adversarial, best_loss = found
    return problem.result(fooled, adversarial, best_loss, queries)


@jax.jit
def _both(
    first: tuple[Flags, Images, Values], second: tuple[Flags, Images, Values]
) -> tuple[Flags, Images, Values]:
    """Return what two runs found; the images of the first where it fooled the model."""
    fooled = first[0] | second[0]
    return fooled, select(first[0], first[1], second[1]), jnp.maximum(first[2], second[2])


def run_apgd(
    evaluate: Evaluator,
    start: Images,
    natural: Images,
    labels: Labels,
    threat_model: ThreatModel,
    *,
    num_steps: int = 100,
    rho: Number = 0.75,
    stop_after: int | None = None,
    loop: LoopKind = "auto",
) -> ApgdState | SparseState:
    """Run Auto-PGD once, from a given start, and return the final state of the loop.

    ``num_steps`` decides when step sizes can be halved; of these steps only ``stop_after`` are
    taken if it is given, and 0 evaluates the start. Under ``L1``, ``stop_after`` is the number of
    steps, and ``rho`` is without effect.
    """
    steps = num_steps if stop_after is None else stop_after
    if isinstance(threat_model, L1):
        inputs = (evaluate, start, natural, labels, threat_model)
        return run_sparse_apgd(*inputs, num_steps=steps, loop=loop)
    # With zeros behind the windows, runs of other lengths share one compiled step.
    windows = checkpoint_windows(num_steps)
    padded = jnp.asarray(np.pad(windows, (0, -len(windows) % _WINDOWS_SHAPE)))
    state = _initial_state(start, natural, threat_model)
    operands = (evaluate, natural, labels, threat_model, padded, rho)
    return iterate(_STEP, state, *operands, num_steps=steps + 1, loop=loop)


def checkpoint_windows(num_steps: int) -> np.ndarray:
    """Return for every step the length of the window that ends with it, 0 where none does.

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


@jax.jit
def surface_start(threat_model: ThreatModel, keys: Keys, natural: Images) -> Images:
    """Draw points at distance epsilon from the natural images, clipped to [0, 1].

    Under ``L1`` at the border of the ball of the first stage, see ``attacks.sparse_apgd``.
    """
    if isinstance(threat_model, L1):
        widest = replace(threat_model, epsilon=WIDEST * threat_model.epsilon)
        return widest.project(natural + threat_model.noise(keys, natural), natural)
    noise = threat_model.noise(keys, natural)
    return at_distance(threat_model, natural, noise, threat_model.epsilon)


@jax.jit
def _initial_state(start: Images, natural: Images, threat_model: ThreatModel) -> ApgdState:
    batch = len(start)
    lowest = jnp.full(batch, -jnp.inf, natural.dtype)
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
        step_size=jnp.full(batch, 2.0, natural.dtype) * threat_model.epsilon,
    )


def _judged(
    i: Int[Array, ""],
    moved: tuple[ApgdState, Images, Evaluation],
    evaluate: Evaluator,
    natural: Images,
    labels: Labels,
    threat_model: ThreatModel,
    windows: Int[Array, "steps"],
    rho: Number,
) -> ApgdState:
    """Record what the model says of the new images."""
    state, images, (values, gradients, logits) = moved
    is_start = i == 0
    fooled = misclassified(logits, labels)
    better = is_start | (values > state.best_loss)
    state = state._replace(
        images=images,
        previous=state.images,
        gradients=gradients,
        **best_of(state, better, fooled, images, gradients, values),
        last_loss=jnp.where(is_start, 0.0, values),
        rises=state.rises + (~is_start & (values > state.last_loss)),
        checked_loss=jnp.where(is_start, values, state.checked_loss),
    )
    return _end_window(state, windows[i], rho)


_MOVED = Part(
    lambda i, state, natural, ball: _move(i, state, natural, ball),
    lambda state, _, natural, labels, ball, *others: (state, natural, ball),
    lambda state, images: (state, images),
)
_EVALUATED = Part(
    gradients_of,
    lambda moved, evaluate, *_: (moved[1], evaluate),
    lambda moved, found: (*moved, found),
)
_STEP = (_MOVED, _EVALUATED, _judged)


def _move(
    i: Int[Array, ""], state: ApgdState, natural: Images, threat_model: ThreatModel
) -> Images:
    """Take a projected step, averaged with the previous displacement; the first has no momentum.

    Iteration 0 stays at the start, so that one program serves both.
    """
    step = state.step_size[:, None, None, None] * threat_model.direction(state.gradients)
    stepped = threat_model.project(state.images + step, natural)
    weight = jnp.where(i == 1, 1.0, MOMENTUM)
    moved = (
        state.images
        + weight * (stepped - state.images)
        + (1 - weight) * (state.images - state.previous)
    )
    return jnp.where(i == 0, state.images, threat_model.project(moved, natural))


def _end_window(state: ApgdState, window: Int[Array, ""], rho: Number) -> ApgdState:
    """Halve step sizes and restart from the best point where a window ends (``window`` > 0).

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
