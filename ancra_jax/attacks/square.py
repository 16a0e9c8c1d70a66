"""The Square attack: a random search that sees nothing but the model's outputs.

References:
  Andriushchenko, Croce, Flammarion & Hein, Square Attack: a query-efficient black-box adversarial
  attack via random search, ECCV 2020.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from ancra_jax.attacks.arguments import AnyKey, Number, as_number, as_whole
from ancra_jax.attacks.loop import MANY_PASSES, LoopKind, evaluated, is_traced
from ancra_jax.attacks.model import Logits, Model, fold_each, misclassified
from ancra_jax.attacks.objectives import Evaluator, Objective, evaluator, in_one_program
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import TINY, ThreatModel, norm_of
from ancra_jax.attacks.validation import AttackResult, checked
from ancra_jax.ops.images import AnyFlags, AnyImages, AnyLabels, Flags, Images, Keys, Labels, Values
from ancra_jax.ops.per_device import (
    Layout,
    Rows,
    batches_of,
    layout_of,
    on_own_rows,
    over_several_devices,
    placed,
    placed_rows,
)
from ancra_jax.ops.pytree import fold, select
from ancra_jax.ops.target import platform

# The fraction of pixels in the window halves after these numbers of proposals. The reference
# implementation does not rescale them to the number of queries in AutoAttack; nor do we.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# On CPU: proposals between two looks from the host, and rows of a device that it searches together.
# In groups a row takes no longer than in a batch (measured: from 4 rows to 64 on one device; on two
# each had better have 16 than 8); the last groups may be smaller, which saves padding.
_CHUNK, _ROWS, _SMALLER = 25, 16, (8, 4)

Count = int | Int[Array, ""]


class Windows(NamedTuple):
    """The window of every phase of the schedule; ``patterns`` and ``tile`` are empty under Linf."""

    heights: Int[Array, "phases"]
    widths: Int[Array, "phases"]
    patterns: Float[Array, "phases side side"]  # of unit norm, in the corner of a square of zeros
    tile: Float[Array, "tile tile"]  # the pattern that the starting point is tiled with


class Search(NamedTuple):
    """What the search works on."""

    evaluate: Evaluator  # the objective, and the model that has to be fooled
    keys: Keys  # the source of every example's randomness
    natural: Images
    labels: Labels
    threat_model: ThreatModel
    table: Windows

    def among(self, rows: Rows) -> "Search":
        """Return the search for some of the examples."""
        bits = np.asarray(jax.random.key_data(self.keys))[rows]
        return self._replace(
            evaluate=self.evaluate.among(rows),
            keys=jax.random.wrap_key_data(bits, impl=jax.random.key_impl(self.keys)),
            natural=jnp.asarray(np.asarray(self.natural)[rows]),
            labels=jnp.asarray(np.asarray(self.labels)[rows]),
        )


class SquareState(NamedTuple):
    """What is known of every example."""

    images: Images  # the best image so far
    loss: Values  # its objective
    fooled: Flags  # whether it is misclassified
    done: Flags  # fooled, or not to be attacked: the row does not change any more
    queries: Labels  # images evaluated


Evaluated = tuple[Values, Logits]
Carry = tuple[Int[Array, ""], SquareState]


@explains_old_calls
def square(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    key: AnyKey | None = None,
    loss: str | Objective = "margin",
    targets: AnyLabels | None = None,
    indices: AnyLabels | None = None,
    num_queries: int = 5000,
    p_init: Number = 0.8,
    active: AnyFlags | None = None,
    loop: LoopKind = "auto",
) -> AttackResult:
    """Change random windows and keep what raises the loss, until an image is misclassified.

    From a random starting point ``num_queries`` proposals are tried one after the other; one is
    kept if it raises the loss or fools the model, which is only called, never differentiated. An
    example stops as soon as an image of it is misclassified, the natural one and the start
    included. ``ancra_jax.attacks`` describes the common arguments.

    Args:
      loss: an objective on another model costs a forward pass of both.
      num_queries: most proposals per example, at least 1; as in the reference, the natural image
        and the starting point are not among them. The schedule of window sizes is that of 5,000
        queries whatever their number.
      p_init: fraction of the pixels in the first windows, in (0, 1].
      loop: ``'host'`` searches in groups of 16 rows a device, the last ones smaller, by the same
        programs for all sizes of a batch, and leaves finished examples out every 25 proposals; with
        an objective on another model the batch stays together, and inside ``jit``, where there is
        nothing to look at, the loop is compiled.

    Returns:
      ``queries`` counts the natural image and the start too: at most ``num_queries + 2``.
    """
    num_queries = as_whole(num_queries, "num_queries")
    p_init = as_number(p_init, "p_init", most=1.0)
    if key is None:
        raise ValueError("key=None: random windows need a key")
    common = dict(targets=targets, active=active, indices=indices, key=key)
    inputs = checked(model, images, labels, threat_model, loop=loop, loss=loss, **common)
    problem = inputs.problem
    natural, labels, threat_model = problem.images, problem.labels, problem.threat_model
    evaluate = evaluator(inputs.objective, problem.model)
    table = windows(threat_model, natural.shape[1], natural.shape[2], p_init)
    search = Search(evaluate, inputs.keys(), natural, labels, threat_model, table)
    search = fold(search)
    first = _first(search)
    shared = fold(evaluator(in_one_program(inputs.objective), problem.model))
    evaluations = evaluated(shared, natural), evaluated(shared, first)
    state = _start(search, problem.active, first, *evaluations)
    traced = is_traced((search, state))
    layout = None if traced else layout_of(state, search)
    if loop == "auto":
        loop = "compiled" if traced or platform() != "cpu" else "host"
    together = (
        traced
        or loop == "compiled"
        or search.evaluate.judge is not None
        or (layout is None and over_several_devices(natural))
        or not natural.is_fully_addressable
    )
    if together:
        state = _search(layout, search, state, 0, num_queries)
    else:
        state = _search_in_groups(layout, search, state, num_queries)
    return problem.result(state.fooled, state.images, state.loss, state.queries)


def _evaluate(search: Search, images: Images) -> tuple[Values, Flags]:
    loss, logits = search.evaluate.without_gradients(images)
    return loss, misclassified(logits, search.labels)


@jax.jit
def _first(search: Search) -> Images:
    return starting_point(search, fold_each(search.keys, 0))


@jax.jit
def _start(
    search: Search, active: Flags, first: Images, at_natural: Evaluated, at_first: Evaluated
) -> SquareState:
    (loss, logits), (first_loss, first_logits) = at_natural, at_first
    fooled = misclassified(logits, search.labels)
    skip = fooled | ~active
    fooled = jnp.where(skip, fooled, misclassified(first_logits, search.labels))
    return SquareState(
        images=select(skip, search.natural, first),
        loss=jnp.where(skip, loss, first_loss),
        fooled=fooled,
        done=fooled | ~active,
        queries=jnp.where(active, jnp.where(skip, 1, 2), 0).astype(jnp.int32),
    )


@partial(jax.jit, static_argnums=0)
def _search(
    layout: Layout | None, search: Search, state: SquareState, first: Count, stop: Count
) -> SquareState:
    """Try proposals ``first .. stop - 1``, fewer if every example is done before."""

    def propose_all(steps: Any, state: SquareState, search: Search) -> SquareState:
        first, stop = steps

        def unfinished(carry: Carry) -> Bool[Array, ""]:
            step, state = carry
            return (step < stop) & jnp.any(~state.done)

        def propose(carry: Carry) -> Carry:
            step, state = carry
            return step + 1, _step(search, state, step)

        return jax.lax.while_loop(unfinished, propose, (first, state))[1]

    steps = jnp.asarray(first, jnp.int32), jnp.asarray(stop, jnp.int32)
    return on_own_rows(propose_all, layout)(steps, state, search)


def _step(search: Search, state: SquareState, step: Int[Array, ""]) -> SquareState:
    candidates = proposal(search, fold_each(search.keys, step + 1), state.images, step)
    loss, fooled = _evaluate(search, candidates)
    accepted = ~state.done & ((loss > state.loss) | fooled)
    return SquareState(
        images=select(accepted, candidates, state.images),
        loss=jnp.where(accepted, loss, state.loss),
        fooled=state.fooled | (accepted & fooled),
        done=state.done | (accepted & fooled),
        queries=state.queries + ~state.done,
    )


def _search_in_groups(
    layout: Layout | None, search: Search, state: SquareState, stop: int
) -> SquareState:
    """Search a few rows at a time, and leave out those that are finished.

    Rows do not depend on each other, so this changes no result.
    """
    devices = 1 if layout is None else layout.mesh.size
    sizes = [min(len(state.done), _ROWS * devices)]
    if stop >= MANY_PASSES:
        smaller = (size * devices for size in _SMALLER)
        sizes += [size for size in smaller if size < sizes[0]]
    found = jax.tree.map(np.array, state)
    groups: list[tuple[Rows, Search]] = []
    for first in range(0, stop, _CHUNK):
        left = np.flatnonzero(~found.done)
        if left.size == 0:
            break
        chosen = [rows for rows, _ in batches_of(left, sizes)]
        if [rows.size for rows in chosen] != [rows.size for rows, _ in groups]:
            groups = [(rows, placed(search.among(rows), layout)) for rows in chosen]
        parts = []
        for rows, part_search in groups:
            part = placed_rows(jax.tree.map(lambda x: x[rows], found), layout)  # noqa: B023
            parts.append(_search(layout, part_search, part, first, min(first + _CHUNK, stop)))
        for (rows, _), part in zip(groups, parts, strict=True):
            for array, new in zip(found, part, strict=True):
                array[rows] = new
    return placed_rows(found, layout)


def windows(threat_model: ThreatModel, height: int, width: int, p_init: Number) -> Windows:
    """Build the schedule's windows for images of a given size.

    Their side is ``round(sqrt(p height width))``, where ``p`` starts at ``p_init``. Under ``Linf``
    at least 1, and cut to the short side of an elongated image; else at least 3, made odd, inside
    the image.
    """
    fractions = [p_init / 2**phase for phase in range(len(HALVINGS) + 1)]
    sides = [max(round(math.sqrt(p * height * width)), 1) for p in fractions]
    short = min(height, width)
    if norm_of(threat_model) == "linf":
        heights, widths = (np.minimum(sides, limit) for limit in (height, width))
        patterns, tile = np.zeros((len(sides), 0, 0)), np.zeros((0, 0))
    else:
        largest_odd = short - (short + 1) % 2
        sides = [min(max(side, 3) | 1, largest_odd) for side in sides]
        heights = widths = np.asarray(sides)
        corner = [(0, max(sides) - side) for side in sides]
        eta = partial(pattern, norm=norm_of(threat_model))
        patterns = np.stack([np.pad(eta(s), c) for s, c in zip(sides, corner, strict=True)])
        tile = eta(max(short // 5, 1))
    return Windows(
        jnp.asarray(heights, jnp.int32),
        jnp.asarray(widths, jnp.int32),
        jnp.asarray(patterns, jnp.float32),
        jnp.asarray(tile, jnp.float32),
    )


def pattern(side: int, norm: str = "l2") -> Float[np.ndarray, "side side"]:
    """Build the window of unit norm, for L2 or L1: upper half positive, lower negative.

    Each half is the sum of nested centred rectangles, the k-th weighted ``1 / (k + 1)^2``, under L1
    ``1 / (k + 1)^4``.
    """
    order, decay = {"l2": (2, 2), "l1": (1, 4)}[norm]

    def scaled(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        return x / np.linalg.norm(x.ravel(), order)

    upper, lower = _pyramid(side // 2, side, decay), _pyramid(side - side // 2, side, decay)
    return scaled(np.concatenate([scaled(upper) if upper.size else upper, -scaled(lower)]))


def _pyramid(rows: int, columns: int, decay: int) -> Float[np.ndarray, "rows columns"]:
    center = rows // 2, columns // 2
    rings = np.maximum(
        np.abs(np.arange(rows) - center[0])[:, None], np.abs(np.arange(columns) - center[1])
    )
    count = max(center) + 1
    weights = 1.0 / np.arange(1, count + 1) ** decay
    return np.cumsum(weights[::-1])[::-1][rings]  # sum over k >= ring


def starting_point(search: Search, keys: Keys) -> Images:
    """Draw the first images. Linf: vertical stripes of random sign; else a grid of patterns."""
    natural, ball, table = search.natural, search.threat_model, search.table
    _, height, width, channels = natural.shape
    if norm_of(ball) == "linf":
        signs = _signs(_bits(keys, (1, width, channels)))
        return ball.project(natural + ball.epsilon * signs, natural)

    side = len(table.tile)
    rows, columns = height // side, width // side
    bits = _bits(keys, (rows, columns, channels + 1))
    signs, upright = _signs(bits[..., 1:]), _signs(bits[..., 0]) > 0
    tiles = jnp.where(upright[..., None, None], table.tile, table.tile.T)
    grid = jnp.einsum("brcij,brck->bricjk", tiles, signs, precision="highest")
    grid = grid.reshape(len(natural), rows * side, columns * side, channels)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    bottom, right = height - rows * side - top, width - columns * side - left
    delta = jnp.pad(grid, ((0, 0), (top, bottom), (left, right), (0, 0)))
    return _brought_to_epsilon(search, delta)


def proposal(search: Search, keys: Keys, images: Images, step: Int[Array, ""]) -> Images:
    """Change one random window of every image, inside the ball and [0, 1].

    The number of the step, from 0, decides the size of the window; ``keys`` are for it alone.
    """
    phase = jnp.sum(step > jnp.asarray(HALVINGS))
    norm = norm_of(search.threat_model)
    propose = _linf_proposal if norm == "linf" else partial(_moving_proposal, norm)
    return propose(search, keys, images, phase)


def _linf_proposal(search: Search, keys: Keys, images: Images, phase: Int[Array, ""]) -> Images:
    """Add +-2 epsilon per channel in the window: after the projection, natural +- epsilon."""
    ball, table = search.threat_model, search.table
    bits = _bits(keys, (2 + images.shape[-1],))
    window = _window(bits[:, :2], images, table.heights[phase], table.widths[phase])
    change = 2 * ball.epsilon * _signs(bits[:, None, None, 2:])
    return ball.project(images + jnp.where(window.mask, change, 0.0), search.natural)


def _moving_proposal(
    norm: str, search: Search, keys: Keys, images: Images, phase: Int[Array, ""]
) -> Images:
    """Move the norm found in two windows, and what is left of epsilon, into the first of them."""
    ball, table = search.threat_model, search.table
    side, channels = table.heights[phase], images.shape[-1]
    bits = _bits(keys, (5 + channels,))
    first = _window(bits[:, 0:2], images, side, side)
    second = _window(bits[:, 2:4], images, side, side)
    upright, signs = _signs(bits[:, 4]) > 0, _signs(bits[:, None, None, 5:])
    delta = images - search.natural
    raised, root, power = _POWERS[norm]

    def energy_of(x: Images) -> Float[Array, "batch 1 1 channels"]:
        return jnp.sum(raised(x), axis=(1, 2), keepdims=True)

    left_over = ball.epsilon**power - jnp.sum(raised(delta), (1, 2, 3), keepdims=True)
    energy = jnp.maximum(left_over, 0.0) / channels + energy_of(
        jnp.where(first.mask | second.mask, delta, 0.0)
    )
    eta = table.patterns[phase]
    eta = jnp.where(upright[:, None, None], eta, eta.T)
    old = jnp.where(first.mask, delta, 0.0)
    new = _placed(eta, first, images.shape) * signs
    new = new + old / (root(energy_of(old)) + TINY)
    # The reference fills the window with so much more under L1; the projection takes it away
    # everywhere, which makes the perturbation sparser.
    excess = channels if norm == "l1" else 1
    new = new * excess * root(energy) / (root(energy_of(new)) + TINY)
    delta = jnp.where(first.mask, new, jnp.where(second.mask, 0.0, delta))
    return _brought_to_epsilon(search, delta)


_POWERS = {"l2": (jnp.square, jnp.sqrt, 2), "l1": (jnp.abs, lambda x: x, 1)}
"""What is summed in a norm, its root, and the power of epsilon that this is compared with."""


def _brought_to_epsilon(search: Search, delta: Images) -> Images:
    """Scale to a norm of epsilon and clip under L2; project under L1, which keeps the peaks."""
    ball, natural = search.threat_model, search.natural
    if norm_of(ball) == "l1":
        return ball.project(natural + delta, natural)
    return jnp.clip(natural + ball.epsilon * ball.direction(delta), 0.0, 1.0)


class _Window(NamedTuple):
    top: Labels
    left: Labels
    mask: Bool[Array, "batch height width 1"]


def _window(
    bits: UInt32[Array, "batch 2"], images: Images, height: Int[Array, ""], width: Int[Array, ""]
) -> _Window:
    """Draw a window of the given size for every image, uniformly over all places inside it.

    The remainder of 32 random bits is uniform to one part in ten million.
    """
    top = (bits[:, 0] % (images.shape[1] - height + 1).astype(jnp.uint32)).astype(jnp.int32)
    left = (bits[:, 1] % (images.shape[2] - width + 1).astype(jnp.uint32)).astype(jnp.int32)
    rows = jnp.arange(images.shape[1]) - top[:, None]
    columns = jnp.arange(images.shape[2]) - left[:, None]
    in_rows, in_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    return _Window(top, left, in_rows[:, :, None, None] & in_columns[:, None, :, None])


def _placed(
    eta: Float[Array, "batch side side"], window: _Window, shape: tuple[int, ...]
) -> Float[Array, "batch height width 1"]:
    """Put every pattern at its window's place.

    By two products with 0-1 matrices: gathers and scatters are slow on CPU and TPU.
    """
    offsets = jnp.arange(eta.shape[-1])
    rows = jnp.arange(shape[1])[:, None] == window.top[:, None, None] + offsets
    columns = jnp.arange(shape[2])[:, None] == window.left[:, None, None] + offsets
    matrices = rows.astype(eta.dtype), eta, columns.astype(eta.dtype)
    return jnp.einsum("bhi,bij,bwj->bhw", *matrices, precision="highest")[..., None]


def _bits(keys: Keys, shape: tuple[int, ...]) -> UInt32[Array, "batch *shape"]:
    """Draw 32 random bits for every entry: one draw for all that a step needs."""
    return jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)


def _signs(bits: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return +1 or -1 by the highest bit."""
    return jnp.where(bits >> 31 == 1, 1.0, -1.0)
