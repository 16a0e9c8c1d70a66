"""What a training method is: attacks on a batch, then a loss over training-phase forwards.

A method is a small record of pure functions. Wrappers (the asymmetric negative contrast, ...) take
a method and return another one, so that options compose instead of branching inside the step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ancra_jax.methods.attack import AttackRequest, Images, Predict
from ancra_jax.types import Batch, Outputs

BatchStats = PyTree
Metrics = dict[str, Float[Array, ""]]


Forward = Callable[[BatchStats, Images, Int[Array, "batch"]], tuple[Outputs, BatchStats]]
"""A training-phase forward pass, ``(batch_stats, images, labels) -> (outputs, batch_stats)``.

It normalises by the batch's own statistics and updates the running ones; ``labels`` choose the
reverse-attention masks.
"""


class Examples(NamedTuple):
    """A batch and what its attacks made of it.

    Attributes:
      batch: the natural examples.
      attacked: images by the name of the request that they answer (``'adversarial'``, ...).
      extras: what ``Method.prepare`` wants to hand to ``Method.loss`` (the negatives, ...).
    """

    batch: Batch
    attacked: dict[str, Images]
    extras: dict[str, Any]


class Terms(NamedTuple):
    """The loss of a batch.

    Attributes:
      loss: what is minimised.
      batch_stats: running statistics after this method's forwards.
      natural: outputs of the training-phase forward of the natural images, if there was one.
      metrics: scalars worth logging.
    """

    loss: Float[Array, ""]
    batch_stats: BatchStats
    natural: Outputs | None
    metrics: Metrics


class Plan(NamedTuple):
    """The attacks a method asks for, and what it keeps for its loss."""

    requests: dict[str, AttackRequest]
    extras: dict[str, Any]


Prepare = Callable[[Predict, Batch, Key[Array, ""], Int[Array, ""]], Plan]
"""Plans the attacks on a batch, ``(predict, batch, key, epoch) -> plan``.

``predict`` is the network in the evaluation phase.
"""

Loss = Callable[[Forward, BatchStats, Examples], Terms]
"""The loss of an attacked batch, differentiated in the parameters inside its first argument."""


class Method(NamedTuple):
    """How a batch becomes a training loss."""

    prepare: Prepare
    loss: Loss


def natural_accuracy(outputs: Outputs, labels: Int[Array, "batch"]) -> Float[Array, ""]:
    """Share of the batch that the final logits classify correctly."""
    return jnp.mean((jnp.argmax(outputs.logits, axis=-1) == labels).astype(jnp.float32))
