"""The Square attack: a random search that sees nothing but the model's outputs."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ancra_jax.attacks.loop import LoopKind
from ancra_jax.attacks.model import (
    AnyImages,
    AnyLabels,
    Images,
    LogitsFn,
    as_pytree,
    example_keys,
    float32_logits,
    misclassified,
)
from ancra_jax.attacks.objectives import Objective, margin_term
from ancra_jax.attacks.results import AttackResult
from ancra_jax.attacks.rows import layout_of, on_own_rows
from ancra_jax.attacks.square_proposals import Windows, proposal, starting_point, windows
from ancra_jax.attacks.threat_models import ThreatModel

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


class Problem(NamedTuple):
    """What the search works on; ``keys``, ``natural`` and ``labels`` are per example."""

    keys: Key[Array, "batch"]
    natural: Images
    labels: Int[Array, "batch"]


class Judge(NamedTuple):
    """What the search is about, and shared by all examples."""

    logits_fn: LogitsFn
    objective: Objective | None
    threat_model: ThreatModel
    table: Windows


def square(
    logits_fn: LogitsFn,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    key: Key[Array, ""],
    indices: AnyLabels | None = None,
    num_queries: int = 5000,
    p_init: float = 0.8,
    active: Bool[Array, "batch"] | Bool[np.ndarray, "batch"] | None = None,
    loop: LoopKind = "auto",
    objective: Objective | None = None,
) -> AttackResult:
    """Changes random windows and keeps what raises the objective, until misclassified.

    From a random starting point ``num_queries`` proposals are tried one after the other. An example
    stops as soon as an image of it is misclassified, the natural one and the start included.

    Args:
      logits_fn: the model, see ``attacks.model.LogitsFn``; only called, never differentiated.
      images: natural images, pixels in [0, 1].
      labels: class numbers.
      threat_model: ``Linf`` or ``L2``.
      key: source of all randomness.
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
      objective: what to ascend instead of the margin of ``logits_fn``, see ``attacks.objectives``.
        Success stays a misclassification by ``logits_fn``: a proposal is kept if it raises the
        objective or fools the model, and each costs a forward pass of both. As an objective
        belongs to its batch, finished examples then stay in it.

    Returns:
      See ``AttackResult``; ``queries`` counts evaluated images, natural and start included: at most
      ``num_queries + 2``.

    Raises:
      ValueError: ``num_queries``, ``p_init``, ``loop`` or the threat model is not an allowed one.
    """
    if num_queries < 1:
        raise ValueError(f"num_queries={num_queries}: expected at least 1")
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init={p_init}: a fraction of the pixels, in (0, 1]")
    if loop not in ("auto", "host", "compiled"):
        raise ValueError(f"loop={loop!r}: allowed are 'auto', 'host', 'compiled'")
    natural, labels = jnp.asarray(images), jnp.asarray(labels)
    indices = jnp.arange(len(natural)) if indices is None else jnp.asarray(indices)
    active = jnp.ones(len(natural), bool) if active is None else jnp.asarray(active)

    _, height, width, _ = natural.shape
    table = windows(threat_model, height, width, p_init)
    judge = Judge(as_pytree(logits_fn), objective, threat_model, table)
    problem = Problem(example_keys(key, indices), natural, labels)
    state = _start(judge, problem, active)
    if loop == "compiled" or (loop == "auto" and _prefers_compiled(judge, problem)):
        layout = None if _is_traced((judge, problem)) else layout_of(state, (judge, problem))
        state = _search(layout, judge, problem, state, 0, num_queries)
    else:
        state = _search_from_host(judge, problem, state, num_queries)
    return _result(state, natural, active)


def _prefers_compiled(judge, problem):
    if _is_traced((judge, problem)):
        return True
    return jax.default_backend() != "cpu" or len(problem.natural.sharding.device_set) > 1


def _is_traced(tree):
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _evaluate(judge, images, labels):
    logits = float32_logits(judge.logits_fn, images)
    loss = margin_term(logits, labels) if judge.objective is None else judge.objective(images)
    return loss, misclassified(logits, labels)


@jax.jit
def _start(judge, problem, active):
    natural = problem.natural
    loss, fooled = _evaluate(judge, natural, problem.labels)
    skip = fooled | ~active
    keys = _step_keys(problem.keys, 0)
    first = starting_point(judge.threat_model, keys, natural, judge.table)
    first_loss, first_fooled = _evaluate(judge, first, problem.labels)
    fooled = jnp.where(skip, fooled, first_fooled)
    return SquareState(
        images=_select(skip, natural, first),
        loss=jnp.where(skip, loss, first_loss),
        fooled=fooled,
        done=fooled | ~active,
        queries=jnp.where(active, jnp.where(skip, 1, 2), 0),
    )


@partial(jax.jit, static_argnums=0)
def _search(layout, judge, problem, state, first, stop):
    """Proposals ``first .. stop - 1``, fewer if every example is done before."""

    def search(steps, state, operands):
        first, stop = steps
        judge, problem = operands

        def unfinished(carry):
            step, state = carry
            return (step < stop) & jnp.any(~state.done)

        def propose(carry):
            step, state = carry
            return step + 1, _step(judge, problem, state, step)

        return jax.lax.while_loop(unfinished, propose, (first, state))[1]

    steps = jnp.asarray(first, jnp.int32), jnp.asarray(stop, jnp.int32)
    on_rows = search if layout is None else on_own_rows(search, layout)
    return on_rows(steps, state, (judge, problem))


def _step(judge, problem, state, step):
    keys = _step_keys(problem.keys, step + 1)
    candidates = proposal(
        judge.threat_model, keys, state.images, problem.natural, step, judge.table
    )
    loss, fooled = _evaluate(judge, candidates, problem.labels)
    accepted = ~state.done & ((loss > state.loss) | fooled)
    return SquareState(
        images=_select(accepted, candidates, state.images),
        loss=jnp.where(accepted, loss, state.loss),
        fooled=state.fooled | (accepted & fooled),
        done=state.done | (accepted & fooled),
        queries=state.queries + ~state.done,
    )


def _step_keys(keys, number):
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def _select(mask, chosen, other):
    return jnp.where(mask[:, None, None, None], chosen, other)


def _search_from_host(judge, problem, state, stop):
    """The same search, in chunks, on ever smaller batches.

    Rows do not depend on each other, so leaving finished ones out changes no result.
    """
    rows, part, part_problem = np.arange(len(state.done)), state, problem
    step = 0
    while step < stop:
        part = _search(None, judge, part_problem, part, step, min(step + _CHUNK, stop))
        step += _CHUNK
        num_left = int(np.sum(~np.asarray(part.done)))
        if num_left == 0:
            break
        size = len(rows) if judge.objective is not None else _batch_size(len(rows), num_left)
        if size < len(rows):
            state = jax.tree.map(lambda all_, new: all_.at[rows].set(new), state, part)  # noqa: B023
            rows = np.argsort(np.asarray(state.done), kind="stable")[:size]
            part, part_problem = jax.tree.map(lambda x: x[rows], (state, problem))  # noqa: B023
    return jax.tree.map(lambda all_, new: all_.at[rows].set(new), state, part)


def _batch_size(size, num_left):
    """Halves ``size`` as often as ``num_left`` rows, and the smallest worthwhile batch, allow."""
    while (half := -(-size // 2)) >= max(num_left, _SMALLEST_BATCH):
        size = half
    return size


def _result(state, natural, active):
    success = state.fooled & active
    return AttackResult(
        images=_select(success, state.images, natural),
        success=success,
        best_loss=state.loss,
        queries=state.queries,
    )
