"""Choice of a negative example (an example of another class) for every example of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ancra_jax.ops.images import Flags, Keys, Labels
from ancra_jax.registry import Registry
from ancra_jax.types import Logits

Positions = Int[Array, "batch"]
Candidates = Bool[Array, "batch batch"]
Scores = Float[Array, "batch batch"]

Strategy = Callable[[Labels, Logits], Scores]
"""How well every example of a batch (columns) suits every anchor (rows) as its negative.

``(labels, logits) -> scores``, with the final logits of the batch in the evaluation phase; ``-inf``
where an example is no candidate. Examples of the anchor's own class never are.
"""

RANDOM = "random"

strategies: Registry[Strategy | None] = Registry("strategy of negatives")
strategies.register(RANDOM)(None)  # needs no scores; the others fall back to it
register = strategies.register
available = strategies.names


class Negatives(NamedTuple):
    """Chosen negatives, one per anchor."""

    positions: Positions  # in the batch; 0 where there is none
    valid: Flags  # whether the anchor has one: not so in a batch that holds a single class
    fallback: Flags  # whether the strategy had no candidate and the negative is a random one


def random_negatives(keys: Keys, labels: Labels) -> tuple[Positions, Flags]:
    """Draw for every anchor another class among those present, then an example of that class.

    Both draws are uniform, so an example of class ``c`` is drawn with a probability proportional to
    ``1 / (number of examples of c)``: one categorical draw over the batch, with one key per anchor.

    Returns:
      Positions in the batch, and whether there was anything to draw from.
    """
    same_class = labels[:, None] == labels[None, :]
    log_weights = -jnp.log(jnp.sum(same_class, axis=1).astype(jnp.float32))
    scores = jnp.where(same_class, -jnp.inf, log_weights[None, :])
    valid = ~jnp.all(same_class, axis=1)
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(valid[:, None], scores, 0.0))
    return jnp.where(valid, drawn, 0).astype(jnp.int32), valid


@register("soft")
def soft(labels: Labels, logits: Logits) -> Scores:
    """Score the examples that are predicted to be what the anchor is predicted to be."""
    predicted = jnp.argmax(logits, axis=-1)
    return _anchor_class_logit(labels, logits, predicted[None, :] == predicted[:, None])


@register("hard")
def hard(labels: Labels, logits: Logits) -> Scores:
    """Score the examples that are predicted to be of the anchor's class."""
    predicted = jnp.argmax(logits, axis=-1)
    return _anchor_class_logit(labels, logits, predicted[None, :] == labels[:, None])


@register("easy")
def easy(labels: Labels, logits: Logits) -> Scores:
    """Score the examples that are predicted to be neither of the anchor's class nor as it is."""
    predicted = jnp.argmax(logits, axis=-1)
    as_anchor = predicted[None, :] == predicted[:, None]
    as_label = predicted[None, :] == labels[:, None]
    return _anchor_class_logit(labels, logits, ~as_anchor & ~as_label)


def _anchor_class_logit(labels: Labels, logits: Logits, candidates: Candidates) -> Scores:
    """Return every candidate's final logit for the anchor's class, ``-inf`` elsewhere."""
    return jnp.where(candidates, logits[:, labels].T, -jnp.inf)


def choose_negatives(
    strategy: str, keys: Keys, labels: Labels, logits: Logits | None = None
) -> Negatives:
    """Choose one negative per anchor from the batch (paper section on negative examples, Table 4).

    Args:
      strategy: ``'random'``, or a registered one: of its candidates the one with the largest score;
        without a candidate, a random negative.
      keys: one per anchor.
      labels: true classes.
      logits: final logits of the batch in the evaluation phase; only ``'random'`` needs none.

    Raises:
      UsageError: there is no such strategy.
      ValueError: a strategy that needs ``logits`` without them.
    """
    score = strategies.get(strategy, "strategy")
    drawn, valid = random_negatives(keys, labels)
    if score is None:
        return Negatives(drawn, valid, jnp.zeros_like(valid))
    if logits is None:
        raise ValueError(f"strategy={strategy!r} needs the logits of the batch")
    other_class = labels[:, None] != labels[None, :]
    scores = jnp.where(other_class, score(labels, logits), -jnp.inf)
    found = jnp.any(scores > -jnp.inf, axis=1)
    best = jnp.argmax(scores, axis=1).astype(jnp.int32)
    return Negatives(jnp.where(found, best, drawn), valid, valid & ~found)
