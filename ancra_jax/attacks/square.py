"""The Square attack: a random search that sees nothing but the model's outputs."""

import math
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ancra_jax.attacks.gradients import Evaluator, evaluator
from ancra_jax.attacks.loop import LoopKind
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
from ancra_jax.attacks.objectives import Objective, objective_of
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import L2, Linf, ThreatModel
from ancra_jax.attacks.types import AttackResult
from ancra_jax.attacks.validation import checked
from ancra_jax.ops.images import select
from ancra_jax.ops.per_device import layout_of, on_own_rows

# The fraction of pixels in the window halves after these numbers of proposals. The reference
# implementation does not rescale them to the number of queries in AutoAttack; nor do we.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TINY = 1e-12


class Windows(NamedTuple):
    """The window of every phase of the schedule.

    Attributes:
      heights: rows of the window.
      widths: columns of the window.
      patterns: L2 only: the window's content, a pattern of unit norm in the corner of a square of
        zeros; of size 0 under Linf.
      tile: L2 only: the pattern that the starting point is tiled with.
    """

    heights: Int[Array, "phases"]
    widths: Int[Array, "phases"]
    patterns: Float[Array, "phases side side"]
    tile: Float[Array, "tile tile"]


def windows(threat_model: ThreatModel, height: int, width: int, p_init: float) -> Windows:
    """Builds the schedule's windows for images of a given size.

    Args:
      threat_model: ``Linf`` (windows of side ``round(sqrt(p H W))``, at least 1; on an elongated
        image cut to its short side) or ``L2`` (the same, at least 3, made odd, inside the image).
      height: rows of the images.
      width: columns of the images.
      p_init: fraction of pixels in the first windows.
    """
    fractions = [p_init / 2**phase for phase in range(len(HALVINGS) + 1)]
    sides = [max(round(math.sqrt(p * height * width)), 1) for p in fractions]
    short = min(height, width)
    if isinstance(threat_model, Linf):
        heights, widths = (np.minimum(sides, limit) for limit in (height, width))
        patterns, tile = np.zeros((len(sides), 0, 0)), np.zeros((0, 0))
    elif isinstance(threat_model, L2):
        largest_odd = short - (short + 1) % 2
        sides = [min(max(side, 3) | 1, largest_odd) for side in sides]
        heights = widths = np.asarray(sides)
        patterns = np.stack([_padded(pattern(side), max(sides)) for side in sides])
        tile = pattern(max(short // 5, 1))
    else:
        raise ValueError(f"threat model {threat_model!r}: allowed are Linf and L2")
    return Windows(
        jnp.asarray(heights, jnp.int32),
        jnp.asarray(widths, jnp.int32),
        jnp.asarray(patterns, jnp.float32),
        jnp.asarray(tile, jnp.float32),
    )


def pattern(side: int) -> Float[np.ndarray, "side side"]:
    """The L2 attack's window of unit norm: an upper half that is positive, a lower one negative.

    Each half is the sum of nested centred rectangles, the k-th weighted ``1 / (k + 1)^2``.
    """
    upper, lower = _pyramid(side // 2, side), _pyramid(side - side // 2, side)
    both = np.concatenate([upper, -lower])
    return both / np.linalg.norm(both)


def _pyramid(rows, columns):
    if rows == 0:
        return np.zeros((0, columns))
    center = rows // 2, columns // 2
    rings = np.maximum(
        np.abs(np.arange(rows) - center[0])[:, None], np.abs(np.arange(columns) - center[1])
    )
    count = max(center) + 1
    heights = np.cumsum((1.0 / np.arange(1, count + 1) ** 2)[::-1])[::-1]  # sum over k >= ring
    half = heights[rings]
    return half / np.linalg.norm(half)


def _padded(square, side):
    return np.pad(square, (0, side - len(square)))


def starting_point(
    threat_model: ThreatModel, keys: Key[Array, "batch"], natural: Images, table: Windows
) -> Images:
    """Linf: vertical stripes of random sign per channel. L2: a grid of patterns, norm epsilon."""
    _, height, width, channels = natural.shape
    if isinstance(threat_model, Linf):
        signs = _signs(_bits(keys, (1, width, channels)))
        return threat_model.project(natural + threat_model.epsilon * signs, natural)

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
    return _scaled_to_epsilon(threat_model, delta, natural)


def proposal(
    threat_model: ThreatModel,
    keys: Key[Array, "batch"],
    images: Images,
    natural: Images,
    step: Int[Array, ""],
    table: Windows,
) -> Images:
    """Changes one random window of every image.

    Args:
      threat_model: ``Linf`` or ``L2``.
      keys: one key per example, used for this step alone.
      images: the best images so far.
      natural: natural images.
      step: number of the proposal, from 0; it decides the size of the window.
      table: see ``windows``, for the same threat model and size of image.

    Returns:
      Images in the ball and in [0, 1].
    """
    phase = jnp.sum(step > jnp.asarray(HALVINGS))
    if isinstance(threat_model, Linf):
        return _linf_proposal(threat_model, keys, images, natural, phase, table)
    return _l2_proposal(threat_model, keys, images, natural, phase, table)


def _linf_proposal(threat_model, keys, images, natural, phase, table):
    """Adds +-2 epsilon per channel in the window: after the projection, natural +- epsilon."""
    bits = _bits(keys, (2 + images.shape[-1],))
    window = _window(bits[:, :2], images, table.heights[phase], table.widths[phase])
    change = 2 * threat_model.epsilon * _signs(bits[:, None, None, 2:])
    return threat_model.project(images + jnp.where(window.mask, change, 0.0), natural)


def _l2_proposal(threat_model, keys, images, natural, phase, table):
    """Moves the norm found in two windows, and what is left of epsilon, into the first of them."""
    side, channels = table.heights[phase], images.shape[-1]
    bits = _bits(keys, (5 + channels,))
    first = _window(bits[:, 0:2], images, side, side)
    second = _window(bits[:, 2:4], images, side, side)
    upright, signs = _signs(bits[:, 4]) > 0, _signs(bits[:, None, None, 5:])
    delta = images - natural

    def channel_energy(x):
        return jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True)

    left_over = threat_model.epsilon**2 - jnp.sum(jnp.square(delta), (1, 2, 3), keepdims=True)
    energy = jnp.maximum(left_over, 0.0) / channels + channel_energy(
        jnp.where(first.mask | second.mask, delta, 0.0)
    )
    eta = table.patterns[phase]
    eta = jnp.where(upright[:, None, None], eta, eta.T)
    old = jnp.where(first.mask, delta, 0.0)
    new = _placed(eta, first, images.shape) * signs
    new = new + old / (jnp.sqrt(channel_energy(old)) + _TINY)
    new = new * jnp.sqrt(energy) / (jnp.sqrt(channel_energy(new)) + _TINY)
    delta = jnp.where(first.mask, new, jnp.where(second.mask, 0.0, delta))
    return _scaled_to_epsilon(threat_model, delta, natural)


def _scaled_to_epsilon(threat_model, delta, natural):
    return jnp.clip(natural + threat_model.epsilon * threat_model.direction(delta), 0.0, 1.0)


class _Window(NamedTuple):
    top: Int[Array, "batch"]
    left: Int[Array, "batch"]
    mask: Bool[Array, "batch height width 1"]


def _window(bits, images, height, width):
    """A window of the given size for every image, uniform over all places inside the image.

    The remainder of 32 random bits is uniform to one part in ten million.
    """
    top = (bits[:, 0] % (images.shape[1] - height + 1).astype(jnp.uint32)).astype(jnp.int32)
    left = (bits[:, 1] % (images.shape[2] - width + 1).astype(jnp.uint32)).astype(jnp.int32)
    rows = jnp.arange(images.shape[1]) - top[:, None]
    columns = jnp.arange(images.shape[2]) - left[:, None]
    in_rows, in_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    return _Window(top, left, in_rows[:, :, None, None] & in_columns[:, None, :, None])


def _placed(eta, window, shape):
    """Puts every pattern [batch, side, side] at its window's place, [batch, height, width, 1].

    By two products with 0-1 matrices: gathers and scatters are slow on CPU and TPU.
    """
    offsets = jnp.arange(eta.shape[-1])
    rows = jnp.arange(shape[1])[:, None] == window.top[:, None, None] + offsets
    columns = jnp.arange(shape[2])[:, None] == window.left[:, None, None] + offsets
    placed = jnp.einsum(
        "bhi,bij,bwj->bhw",
        rows.astype(eta.dtype),
        eta,
        columns.astype(eta.dtype),
        precision="highest",
    )
    return placed[..., None]


def _bits(keys, shape):
    """32 random bits for every entry, [batch, *shape]: one draw for all that a step needs."""
    return jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)


def _signs(bits):
    """+1 or -1 by the highest bit."""
    return jnp.where(bits >> 31 == 1, 1.0, -1.0)


_CHUNK = 100  # proposals between two looks from the host, on CPU
_SMALLEST_BATCH = 32  # below, a smaller batch saves less than its compilation costs


class SquareState(NamedTuple):
    """What is known of every example.

    Attributes:
      images: the best image so far.
      loss: its objective.
      fooled: whether it is misclassified.
      done: fooled, or not to be attacked: the row does not change any more.
      queries: images evaluated.
    """

    images: Images
    loss: Float[Array, "batch"]
    fooled: Bool[Array, "batch"]
    done: Bool[Array, "batch"]
    queries: Int[Array, "batch"]


class Rows(NamedTuple):
    """What belongs to one example each.

    Attributes:
      keys: the source of the example's randomness.
      natural: natural images.
      labels: class numbers.
      operands: of the objective, where finished examples can leave the batch; else empty.
    """

    keys: Key[Array, "batch"]
    natural: Images
    labels: Int[Array, "batch"]
    operands: tuple[Array, ...]


class Search(NamedTuple):
    """What all examples share.

    Attributes:
      evaluate: the objective, but for the operands in ``Rows``, and the model.
      threat_model: the ball.
      table: the windows of every phase.
    """

    evaluate: Evaluator
    threat_model: ThreatModel
    table: Windows


@explains_old_calls
def square(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    key: Key[Array, ""] | None = None,
    loss: str | Objective = "margin",
    targets: AnyLabels | None = None,
    indices: AnyLabels | None = None,
    num_queries: int = 5000,
    p_init: float = 0.8,
    active: AnyFlags | None = None,
    loop: LoopKind = "auto",
) -> AttackResult:
    """Changes random windows and keeps what raises the objective, until misclassified.

    From a random starting point ``num_queries`` proposals are tried one after the other. An example
    stops as soon as an image of it is misclassified, the natural one and the start included.

    Args:
      model: see ``attacks.model.Model``; only called, never differentiated.
      images: natural images, pixels in [0, 1].
      labels: class numbers.
      threat_model: ``Linf`` or ``L2``.
      key: source of all randomness.
      loss: what to ascend. A proposal is kept if it raises the loss or fools the model. An
        objective on another model costs a forward pass of both, and finished examples stay in its
        batch.
      targets: class numbers for the targeted losses.
      indices: data-set indices, from which (and from ``key``) every example's randomness is
        derived; 0, 1, 2 ... by default.
      num_queries: most proposals per example, at least 1; as in the reference, the natural image
        and the starting point are not among them. The schedule of window sizes is that of 5,000
        queries whatever their number.
      p_init: fraction of the pixels in the first windows, in (0, 1].
      active: rows to attack; others return unsuccessful with the natural image. All by default.
      loop: ``'compiled'`` searches in one compiled loop; ``'host'`` in chunks of 100 proposals,
        between which finished examples leave the batch (halved as often as they allow, never below
        32 rows: at most a few more compilations, and only for batches of 64 or more). ``'auto'``:
        ``'host'`` on CPU, ``'compiled'`` elsewhere, under ``jit`` and for sharded images.

    Returns:
      See ``AttackResult``; ``queries`` counts evaluated images, natural and start included: at most
      ``num_queries + 2``.

    Raises:
      ValueError: ``num_queries``, ``p_init``, ``loop`` or the threat model is not an allowed one.
    """
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
        random="random windows",
        num_queries=num_queries,
    )
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init={p_init}: a fraction of the pixels, in (0, 1]")
    natural, active = problem.images, problem.active
    _, height, width, _ = natural.shape
    objective = objective_of(loss, problem.model, problem.labels, problem.targets)
    evaluate, operands = evaluator(objective, problem.model), ()
    if evaluate.judge is None:
        evaluate, operands = _without_operands(evaluate)
    search = Search(evaluate, threat_model, windows(threat_model, height, width, p_init))
    rows = Rows(example_keys(problem.key, problem.indices), natural, problem.labels, operands)
    state = _start(search, rows, active)
    if loop == "compiled" or (loop == "auto" and _prefers_compiled(search, rows)):
        layout = None if _is_traced((search, rows)) else layout_of(state, (search, rows))
        state = _search(layout, search, rows, state, 0, num_queries)
    else:
        state = _search_from_host(search, rows, state, num_queries)
    return _result(state, natural, active)


def _prefers_compiled(search, rows):
    if _is_traced((search, rows)):
        return True
    return jax.default_backend() != "cpu" or len(rows.natural.sharding.device_set) > 1


def _is_traced(tree):
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _without_operands(evaluate):
    """Take the operands, which are per example, out of an evaluator."""
    objective = evaluate.objective
    return replace(evaluate, objective=replace(objective, operands=())), objective.operands


def _evaluate(search, rows, images):
    evaluate = search.evaluate
    if evaluate.judge is None:
        own = replace(evaluate.objective, operands=rows.operands)
        evaluate = replace(evaluate, objective=own)
    loss, logits = evaluate.without_gradients(images)
    return loss, misclassified(logits, rows.labels)


@jax.jit
def _start(search, rows, active):
    natural = rows.natural
    loss, fooled = _evaluate(search, rows, natural)
    skip = fooled | ~active
    keys = fold_each(rows.keys, 0)
    first = starting_point(search.threat_model, keys, natural, search.table)
    first_loss, first_fooled = _evaluate(search, rows, first)
    fooled = jnp.where(skip, fooled, first_fooled)
    return SquareState(
        images=select(skip, natural, first),
        loss=jnp.where(skip, loss, first_loss),
        fooled=fooled,
        done=fooled | ~active,
        queries=jnp.where(active, jnp.where(skip, 1, 2), 0),
    )


@partial(jax.jit, static_argnums=0)
def _search(layout, search, rows, state, first, stop):
    """Proposals ``first .. stop - 1``, fewer if every example is done before."""

    def take(steps, state, operands):
        first, stop = steps
        search, rows = operands

        def unfinished(carry):
            step, state = carry
            return (step < stop) & jnp.any(~state.done)

        def propose(carry):
            step, state = carry
            return step + 1, _step(search, rows, state, step)

        return jax.lax.while_loop(unfinished, propose, (first, state))[1]

    steps = jnp.asarray(first, jnp.int32), jnp.asarray(stop, jnp.int32)
    on_rows = take if layout is None else on_own_rows(take, layout)
    return on_rows(steps, state, (search, rows))


def _step(search, rows, state, step):
    keys = fold_each(rows.keys, step + 1)
    candidates = proposal(search.threat_model, keys, state.images, rows.natural, step, search.table)
    loss, fooled = _evaluate(search, rows, candidates)
    accepted = ~state.done & ((loss > state.loss) | fooled)
    return SquareState(
        images=select(accepted, candidates, state.images),
        loss=jnp.where(accepted, loss, state.loss),
        fooled=state.fooled | (accepted & fooled),
        done=state.done | (accepted & fooled),
        queries=state.queries + ~state.done,
    )


def _search_from_host(search, rows, state, stop):
    """The same search, in chunks, on ever smaller batches.

    Rows do not depend on each other, so leaving finished ones out changes no result.
    """
    chosen, part, part_rows = np.arange(len(state.done)), state, rows
    step = 0
    while step < stop:
        part = _search(None, search, part_rows, part, step, min(step + _CHUNK, stop))
        step += _CHUNK
        num_left = int(np.sum(~np.asarray(part.done)))
        if num_left == 0:
            break
        leave = search.evaluate.judge is None
        size = _batch_size(len(chosen), num_left) if leave else len(chosen)
        if size < len(chosen):
            state = jax.tree.map(lambda all_, new: all_.at[chosen].set(new), state, part)  # noqa: B023
            chosen = np.argsort(np.asarray(state.done), kind="stable")[:size]
            part, part_rows = jax.tree.map(lambda x: x[chosen], (state, rows))  # noqa: B023
    return jax.tree.map(lambda all_, new: all_.at[chosen].set(new), state, part)


def _batch_size(size, num_left):
    """Halves ``size`` as often as ``num_left`` rows, and the smallest worthwhile batch, allow."""
    while (half := -(-size // 2)) >= max(num_left, _SMALLEST_BATCH):
        size = half
    return size


def _result(state, natural, active):
    success = state.fooled & active
    return AttackResult(
        images=select(success, state.images, natural),
        success=success,
        best_loss=jnp.where(active, state.loss, -jnp.inf),
        queries=state.queries,
    )
