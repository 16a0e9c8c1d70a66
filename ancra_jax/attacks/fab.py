"""FAB: the fast adaptive boundary attack, which looks for the *smallest* adversarial perturbation.

Untargeted, or targeted (FAB-T), under Linf, L2 or L1. Every step linearises the boundary at
the current point, projects both that point and the natural image onto it inside [0, 1], moves to a
mixture of the two projections a little beyond the boundary, and steps back towards the natural
image whenever the point is misclassified.

References:
  Croce & Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack,
  ICML 2020; targeted version: Croce & Hein, Reliable evaluation of adversarial robustness with an
  ensemble of diverse parameter-free attacks, ICML 2020.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ancra_jax.attacks.arguments import AnyKey, as_flag, as_whole
from ancra_jax.attacks.loop import LoopKind, Part, gradients_of, iterate, values_of
from ancra_jax.attacks.model import (
    Logits,
    Model,
    example_keys,
    float32_logits,
    forward,
    misclassified,
)
from ancra_jax.attacks.objectives import Evaluator, evaluator, in_one_program
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import (
    TINY,
    ThreatModel,
    at_distance,
    largest_first,
    norm_of,
)
from ancra_jax.attacks.validation import AttackResult, Problem, checked
from ancra_jax.ops.bisection import Vectors
from ancra_jax.ops.images import AnyFlags, AnyImages, AnyLabels, Images, Keys, Values
from ancra_jax.ops.pytree import select
from ancra_jax.ops.target import platform

Boundary = tuple[Values, Values, Images]  # distances, values, normals

_HUGE = 1e30
_ALPHA_MAX = 0.1  # largest weight of the natural image's projection
_ETA = 1.05  # overshoot beyond the boundary
_BETA = 0.9  # backward step towards the natural image
_CLASSES_AT_ONCE = 10  # gradients held in memory together by the untargeted attack


class FabState(NamedTuple):
    """What a step changes."""

    point: Images  # the current point
    best: Images  # the closest misclassified image so far; the natural image without one
    best_norm: Values  # its norm, infinite without one


Linearised = tuple[FabState, tuple[Values, Images]]  # with the boundary's value and normal
Judged = tuple[FabState, Images, Logits]  # with the new point and its logits


@explains_old_calls
def fab(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    key: AnyKey | None = None,
    indices: AnyLabels | None = None,
    targets: AnyLabels | None = None,
    num_steps: int = 100,
    num_restarts: int = 1,
    active: AnyFlags | None = None,
    loop: LoopKind = "auto",
    return_outside: bool = False,
) -> AttackResult:
    """Look for the closest misclassified image of every example.

    The search itself does not know epsilon (only the random starts of further restarts do): the
    smallest norm found, ``-result.best_loss``, is an upper bound of the distance to the boundary,
    0 for a natural image that is misclassified. ``ancra_jax.attacks`` describes the common
    arguments.

    Args:
      threat_model: ``Linf``, ``L2`` or ``L1``: the norm to make small, and the epsilon that decides
        ``success``.
      key: for the second and later restarts; the first starts at the natural image and is
        deterministic.
      targets: the classes whose boundary is sought (FAB-T); any misclassification counts. None: the
        class whose linearised boundary is nearest, which costs a gradient for every class.
      num_steps: steps of one restart.
      num_restarts: restarts; the smallest norm over all of them counts.
      return_outside: return the closest misclassified image even where it lies outside the ball;
        ``success`` still says whether its norm is at most epsilon.
    """
    num_steps = as_whole(num_steps, "num_steps")
    num_restarts = as_whole(num_restarts, "num_restarts")
    as_flag(return_outside, "return_outside")
    if key is None and num_restarts > 1:
        raise ValueError("key=None: further restarts need a key")
    common = dict(targets=targets, active=active, indices=indices, key=key)
    loss = "margin" if targets is None else "targeted_margin"
    inputs = checked(model, images, labels, threat_model, loop=loop, loss=loss, **common)
    problem = inputs.problem
    norm_of(threat_model)
    evaluate = evaluator(in_one_program(inputs.objective), problem.model)
    step = (_linearise if targets is None else _LINEARISED, _MOVED, _EVALUATED, _judge)
    state = _start(problem, forward(problem.model, problem.images))
    for restart in range(num_restarts):
        if inputs.key is not None and restart > 0:
            keys = example_keys(jax.random.fold_in(inputs.key, restart), inputs.indices)
            state = _random_restart(state, keys, problem)
        state = iterate(step, state, problem, evaluate, num_steps=num_steps, loop=loop)
    queries = 1 + 2 * num_steps * num_restarts
    return problem.closest(state.best, state.best_norm, queries, return_outside)


@jax.jit
def _start(problem: Problem, logits: Logits) -> FabState:
    natural = problem.images
    fooled = misclassified(logits, problem.labels)
    return FabState(natural, natural, jnp.where(fooled, jnp.float32(0.0), jnp.inf))


@jax.jit
def _random_restart(state: FabState, keys: Keys, problem: Problem) -> FabState:
    """Start at half of the ball's radius, or of the smallest norm found so far if it is less."""
    natural, threat_model = problem.images, problem.threat_model
    radius = 0.5 * jnp.minimum(state.best_norm, threat_model.epsilon)
    noise = threat_model.noise(keys, natural)
    return state._replace(point=at_distance(threat_model, natural, noise, radius))


def _linearise(i: Any, state: FabState, problem: Problem, _: Evaluator) -> Linearised:
    """Compute the boundary's value and normal at the current point, the first part of a step."""
    return state, _nearest_boundary(problem, state.point)


_LINEARISED = Part(  # the same towards a target
    gradients_of,
    lambda state, problem, evaluate: (state.point, evaluate),
    lambda state, found: (state, found[:2]),
)


def _move(
    i: Any,
    point: Images,
    values: Values,
    normals: Images,
    natural: Images,
    threat_model: ThreatModel,
) -> Images:
    """Move by the two projections."""
    x, x0, w = (a.reshape(len(values), -1) for a in (point, natural, normals))
    moves = project_onto_hyperplane(
        jnp.concatenate([x, x0]),
        jnp.concatenate([w, w]),
        jnp.concatenate([values, values + jnp.sum(w * (x0 - x), axis=-1)]),
        threat_model,
    )
    to_boundary, from_natural = moves.reshape(2, *point.shape)
    distance = jnp.maximum(threat_model.norm(to_boundary), 1e-8)
    natural_distance = jnp.maximum(threat_model.norm(from_natural), 1e-8)
    weight = jnp.minimum(distance / (distance + natural_distance), _ALPHA_MAX)
    alpha = weight[:, None, None, None]
    mixture = (1 - alpha) * (point + _ETA * to_boundary) + alpha * (natural + _ETA * from_natural)
    return jnp.clip(mixture, 0.0, 1.0)


_MOVED = Part(
    _move,
    lambda found, problem, _: (found[0].point, *found[1], problem.images, problem.threat_model),
    lambda found, point: (found[0], point),
)


_EVALUATED = Part(
    values_of,
    lambda moved, problem, evaluate: (moved[1], evaluate),
    lambda moved, found: (*moved, found[1]),
)


def _judge(i: Any, moved: Judged, problem: Problem, _: Evaluator) -> FabState:
    """Judge the new point, the last part of a step."""
    state, point, logits = moved
    natural = problem.images
    fooled = misclassified(logits, problem.labels)
    norm = problem.threat_model.norm(point - natural)
    closer = fooled & (norm < state.best_norm)
    return FabState(
        point=select(fooled, natural + _BETA * (point - natural), point),
        best=select(closer, point, state.best),
        best_norm=jnp.where(closer, norm, state.best_norm),
    )


def _nearest_boundary(problem: Problem, point: Images) -> tuple[Values, Images]:
    """Return ``z_k - z_y`` and its gradient for the class k whose linearised boundary is nearest.

    The forward pass is linearised once and pulled back for a few classes at a time, so that the
    memory does not grow with the number of classes.
    """
    labels = problem.labels
    logits, pull_back = jax.vjp(lambda x: float32_logits(problem.model, x), point)
    num_classes = logits.shape[-1]
    own = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)

    def boundary(k: Int[Array, ""]) -> Boundary:
        cotangent = jax.nn.one_hot(k, num_classes, dtype=logits.dtype) - own
        values = jnp.sum(logits * cotangent, axis=-1)
        (normals,) = pull_back(cotangent)
        vectors = normals.reshape(len(labels), -1)
        distance = distance_to_hyperplane(vectors, values, problem.threat_model)
        return jnp.where((k == labels) | (k >= num_classes), jnp.inf, distance), values, normals

    def nearer_of(best: Boundary, chunk: Int[Array, "classes"]) -> tuple[Boundary, None]:
        boundaries = jax.vmap(boundary)(chunk)
        nearest, rows = jnp.argmin(boundaries[0], axis=0), jnp.arange(len(labels))
        found = jax.tree.map(lambda x: x[nearest, rows], boundaries)
        return select(found[0] < best[0], found, best), None

    at_once = min(num_classes, _CLASSES_AT_ONCE)
    chunks = jnp.arange(-(-num_classes // at_once) * at_once).reshape(-1, at_once)
    furthest = jnp.full(len(labels), jnp.inf, logits.dtype)
    start = (furthest, jnp.zeros_like(furthest), jnp.zeros_like(point))
    # Convolution gradients inside a compiled loop are slow on CPU (see attacks.loop): unrolled.
    unroll = len(chunks) if platform() == "cpu" else 1
    (_, values, normals), _ = jax.lax.scan(nearer_of, start, chunks, unroll=unroll)
    return values, normals


def distance_to_hyperplane(normals: Vectors, values: Values, threat_model: ThreatModel) -> Values:
    """Return the distance to the zero set of an affine function, ``|c| / ||w||_dual``.

    ``w`` are the functions' gradients and ``c`` their values at points anywhere; the dual norm is
    L1 for ``Linf``, L2 for ``L2``, Linf for ``L1``. Epsilon plays no part.
    """
    norm = norm_of(threat_model)
    if norm == "linf":
        dual = jnp.sum(jnp.abs(normals), axis=-1)
    elif norm == "l2":
        dual = jnp.sqrt(jnp.sum(jnp.square(normals), axis=-1))
    else:
        dual = jnp.max(jnp.abs(normals), axis=-1)
    return jnp.abs(values) / (dual + TINY)


def project_onto_hyperplane(
    points: Vectors, normals: Vectors, values: Values, threat_model: ThreatModel
) -> Vectors:
    """Return the smallest move to the zero set of an affine function that stays in [0, 1].

    Section 2.2 and 2.3 of the module's first reference. Under L1 the entries of largest ``|w|``
    move, one after the other, as far as the box allows.

    Args:
      points: points in [0, 1].
      normals: gradients ``w`` of the affine functions ``x -> values + <w, x - points>``.
      values: their values at the points.
      threat_model: the norm to measure by, ``Linf``, ``L2`` or ``L1``; its epsilon plays no part.

    Returns:
      Moves ``d`` with ``points + d`` in [0, 1] and ``values + <w, d> = 0``. Where the hyperplane
      misses the box, the move to the corner that comes closest; coordinates with ``w_i = 0`` stay.
    """
    scale = jnp.max(jnp.abs(normals), axis=-1)
    scale = jnp.where(scale > 0, scale, 1.0)
    toward = -jnp.sign(values)[:, None] * jnp.sign(normals)
    weights = jnp.abs(normals) / scale[:, None]
    room = jnp.where(toward > 0, 1.0 - points, points)
    norm, target = norm_of(threat_model), jnp.abs(values) / scale
    if norm == "l1":
        return toward * largest_first(weights, weights, room, target[:, None])
    rates = jnp.where(weights > 0, 1.0, 0.0) if norm == "linf" else weights
    step = _solve_step(weights, rates, room, target)
    return toward * jnp.minimum(step[:, None] * rates, room)


def _solve_step(weights: Vectors, rates: Vectors, room: Vectors, target: Values) -> Values:
    """Return the smallest ``s`` with ``sum_i weights_i min(s rates_i, room_i) = target``.

    By Newton's method, which ends when no further coordinate has reached its ``room``.
    """

    def newton(carry: Any) -> Any:
        step, _, count = carry
        saturated = step[:, None] * rates >= room
        fixed = jnp.sum(jnp.where(saturated, weights * room, 0.0), axis=-1)
        slope = jnp.sum(jnp.where(saturated, 0.0, weights * rates), axis=-1)
        root = jnp.where(slope > 0, (target - fixed) / jnp.where(slope > 0, slope, 1.0), _HUGE)
        return jnp.maximum(step, root), count, jnp.sum(saturated, axis=-1, dtype=jnp.int32)

    def unfinished(carry: Any) -> Array:
        _, previous, count = carry
        return jnp.any(count > previous)

    none = jnp.full(target.shape, -1, jnp.int32)
    step, _, _ = jax.lax.while_loop(unfinished, newton, (jnp.zeros_like(target), none - 1, none))
    return step
