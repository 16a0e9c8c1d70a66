"""Choice of a negative example (an example of another class) for every example of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

STRATEGIES = ("random", "soft", "hard", "easy")


class Negatives(NamedTuple):
    """Chosen negatives.

    Attributes:
      positions: position in the batch of every anchor's negative; 0 where there is none.
      valid: whether the anchor has one: not so in a batch that holds a single class.
      fallback: whether the strategy had no candidate and the negative is a random one.
    """

    positions: Int[Array, "batch"]
    valid: Bool[Array, "batch"]
    fallback: Bool[Array, "batch"]


def random_negatives(
    keys: Key[Array, "batch"], labels: Int[Array, "batch"]
) -> tuple[Int[Array, "batch"], Bool[Array, "batch"]]:
    """Draws for every anchor a class other than its own among those present, then an example of it.

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


def strategic_candidates(
    strategy: str, labels: Int[Array, "batch"], predictions: Int[Array, "batch"]
) -> Bool[Array, "batch batch"]:
    """Which examples (columns) a strategy admits as negatives of which anchors (rows).

    With true labels ``y`` and predicted ones ``h``, an example ``j`` of another class than anchor
    ``i`` is a candidate if

    - ``soft``: ``h_j = h_i`` (it is taken for what the anchor is taken for),
    - ``hard``: ``h_j = y_i`` (it is taken for the anchor's class),
    - ``easy``: ``h_j`` is neither ``y_i`` nor ``h_i``.
    """
    other_class = labels[:, None] != labels[None, :]
    as_predicted = predictions[None, :] == predictions[:, None]
    as_label = predictions[None, :] == labels[:, None]
    match strategy:
        case "soft":
            return other_class & as_predicted
        case "hard":
            return other_class & as_label
        case "easy":
            return other_class & ~as_label & ~as_predicted
    raise ValueError(f"strategy={strategy!r}: allowed are 'soft', 'hard', 'easy'")


def choose_negatives(
    strategy: str,
    keys: Key[Array, "batch"],
    labels: Int[Array, "batch"],
    logits: Float[Array, "batch classes"] | None = None,
) -> Negatives:
    """Chooses one negative per anchor from the batch (paper section on negative examples, Table 4).

    Args:
      strategy: ``'random'``, or one of ``strategic_candidates``: of the candidates the one with the
        largest final logit for the anchor's class; without a candidate, a random negative.
      keys: one key per anchor.
      labels: true classes.
      logits: final logits of the batch in evaluation mode; only ``'random'`` does without.

    Raises:
      ValueError: unknown strategy, or a strategy that needs ``logits`` without them.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: allowed are {', '.join(STRATEGIES)}")
    drawn, valid = random_negatives(keys, labels)
    if strategy == "random":
        return Negatives(drawn, valid, jnp.zeros_like(valid))
    if logits is None:
        raise ValueError(f"strategy={strategy!r} needs the logits of the batch")
    candidates = strategic_candidates(strategy, labels, jnp.argmax(logits, axis=-1))
    scores = jnp.where(candidates, logits[:, labels].T, -jnp.inf)
    found = jnp.any(candidates, axis=1)
    best = jnp.argmax(scores, axis=1).astype(jnp.int32)
    return Negatives(jnp.where(found, best, drawn), valid, valid & ~found)
