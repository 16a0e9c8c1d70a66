"""Auto-PGD under L1: sparse steps whose sparsity and length adapt, in balls that shrink.

References:
  Croce & Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers,
  ICML 2021, sections 3.2 and 3.3; constants as in AutoAttack's published settings.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ancra_jax.attacks.loop import LoopKind, iterate
from ancra_jax.attacks.model import misclassified
from ancra_jax.attacks.objectives import Evaluator
from ancra_jax.attacks.threat_models import L1, sparse_direction
from ancra_jax.ops.images import Flags, Images, Labels, Values
from ancra_jax.ops.pytree import select

WIDEST = 3
_SHARES = ((WIDEST, 0.3), (2, 0.3))  # of the steps, in balls so many times as large as the last one
_DENSER = 1.5  # a step changes the number of entries that the best point changes, over this
_STEADY = 0.95  # the best point's sparsity is settled if it kept this share of its changed entries
_SHORTEST = 0.1  # of epsilon, a step


class SparseState(NamedTuple):
    """What the loop carries from step to step; the first fields as in ``ApgdState``."""

    images: Images
    gradients: Images
    adversarial: Images
    fooled: Flags
    best_images: Images
    best_gradients: Images
    best_loss: Values
    changed: Values  # how many entries the best point changed at the last checkpoint
    density: Values  # the share of the entries that a step changes
    step_size: Values


def run_sparse_apgd(
    evaluate: Evaluator,
    start: Images,
    natural: Images,
    labels: Labels,
    threat_model: L1,
    *,
    num_steps: int,
    loop: LoopKind = "auto",
) -> SparseState:
    """Run Auto-PGD under L1 once and return the final state of the loop.

    0.3 of the steps are taken in a ball of radius 3 epsilon, 0.3 in one of 2 epsilon, the rest in
    the ball itself. Every stage starts at the best point of the one before it, projected, and
    forgets all else of it: what fools the model outside of the ball does not count. Last of all
    the point farthest along the best point's gradient is evaluated, the optimum of a linear
    objective, which the steps only come near. With 0 steps the start alone is evaluated.
    """
    first = 0  # so that no two steps draw the same randomness
    for factor, size in stages(num_steps):
        is_last = factor == 1 and num_steps > 0
        ball = replace(threat_model, epsilon=factor * threat_model.epsilon)
        state = _initial_state(start, natural, ball)
        period = jnp.int32(max(int(0.04 * size), 1))
        last = jnp.int32(size + 1 if is_last else -1)
        operands = (evaluate, natural, labels, ball, period, jnp.int32(first), last)
        state = iterate(_step, state, *operands, num_steps=size + 1 + is_last, loop=loop)
        start, first = state.best_images, first + size + 1
    return state


def stages(num_steps: int) -> list[tuple[int, int]]:
    """Return the radius of every stage's ball, as a multiple of epsilon, and the stage's steps."""
    if num_steps < 3:
        return [(1, num_steps)]
    early = [(factor, math.ceil(share * num_steps)) for factor, share in _SHARES]
    return [*early, (1, num_steps - sum(size for _, size in early))]


def evaluations(num_steps: int) -> int:
    """Return how often a run evaluates an example: a start a stage, the steps, the last point."""
    return len(stages(num_steps)) + num_steps + (num_steps > 0)


@jax.jit
def _initial_state(start: Images, natural: Images, ball: L1) -> SparseState:
    start = ball.project(start, natural)
    changed = _changed(start, natural)
    return SparseState(
        images=start,
        gradients=jnp.zeros_like(start),
        adversarial=natural,
        fooled=jnp.zeros(len(start), bool),
        best_images=start,
        best_gradients=jnp.zeros_like(start),
        best_loss=jnp.full(len(start), -jnp.inf, natural.dtype),
        changed=changed,
        density=changed / natural[0].size / _DENSER,
        step_size=jnp.full(len(start), 1.0, natural.dtype) * ball.epsilon,
    )


def best_of(
    state: Any, better: Flags, fooled: Flags, images: Images, gradients: Images, values: Values
) -> dict[str, Any]:
    """Return the fields of either Auto-PGD's state that say what was found, after a step."""
    return {
        "adversarial": select(fooled, images, state.adversarial),
        "fooled": state.fooled | fooled,
        "best_images": select(better, images, state.best_images),
        "best_gradients": select(better, gradients, state.best_gradients),
        "best_loss": jnp.where(better, values, state.best_loss),
    }


def _changed(images: Images, natural: Images) -> Values:
    return jnp.sum(images != natural, axis=(1, 2, 3)).astype(jnp.float32)


def _step(
    i: Int[Array, ""],
    state: SparseState,
    evaluate: Evaluator,
    natural: Images,
    labels: Labels,
    ball: L1,
    period: Int[Array, ""],
    first: Int[Array, ""],
    last: Int[Array, ""],
) -> SparseState:
    """Take one step; iteration 0 evaluates the start, so that one program serves both."""
    is_start = i == 0
    images = jax.lax.cond(
        i == last,
        lambda: ball.farthest(state.best_gradients, natural),
        lambda: ball.project(state.images + _sparse_step(state), natural),
    )
    images = jnp.where(is_start, state.images, images)
    values, gradients, logits = evaluate(images, first + i)
    fooled = misclassified(logits, labels)
    better = is_start | (values > state.best_loss)
    state = state._replace(
        images=images,
        gradients=gradients,
        **best_of(state, better, fooled, images, gradients, values),
    )
    checkpoint = ~is_start & (i % period == 0)
    return jax.tree.map(
        lambda new, old: jnp.where(checkpoint, new, old), _adapted(state, natural, ball), state
    )


def _sparse_step(state: SparseState) -> Images:
    count = jnp.clip(jnp.ceil(state.density * state.images[0].size), 1, state.images[0].size)
    direction = sparse_direction(state.gradients, count.astype(jnp.int32)[:, None])
    return state.step_size[:, None, None, None] * direction


def _adapted(state: SparseState, natural: Images, ball: L1) -> SparseState:
    """Adapt the sparsity to the best point's; where that is settled, shorten the steps.

    Where the best point became sparser, the search goes on from it with the longest step.
    """
    changed = _changed(state.best_images, natural)
    sparser = changed < _STEADY * state.changed
    shorter = jnp.maximum(state.step_size / _DENSER, _SHORTEST * ball.epsilon)
    return state._replace(
        images=select(sparser, state.best_images, state.images),
        gradients=select(sparser, state.best_gradients, state.gradients),
        changed=changed,
        density=changed / natural[0].size / _DENSER,
        step_size=jnp.where(sparser, ball.epsilon, shorter),
    )
