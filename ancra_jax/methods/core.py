"""What a training method is: attacks on a batch, then a loss over training-phase forwards.

A method is a small record of pure functions. Wrappers (the asymmetric negative contrast, ...) take
a method and return another one, so that options compose instead of branching inside the step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ancra_jax.attacks.model import example_keys as _example_keys
from ancra_jax.errors import UsageError
from ancra_jax.methods.attack import AttackRequest, AttackSettings, Images, Predict, run_requests
from ancra_jax.types import Batch, Outputs

ADVERSARIAL, NEGATIVE_CHOICE, NEGATIVE_ATTACK = range(3)


def example_keys(
    key: Key[Array, ""], stream: int, indices: Int[Array, "batch"]
) -> Key[Array, "batch"]:
    """Keys of one stream of a step, derived from the step's key and the data-set indices."""
    return _example_keys(jax.random.fold_in(key, stream), indices)


BatchStats = PyTree
MethodState = dict[str, PyTree]
Metrics = dict[str, Float[Array, ""]]


Forward = Callable[[BatchStats, Images, Int[Array, "batch"]], tuple[Outputs, BatchStats]]
"""A training-phase forward pass, ``(batch_stats, images, labels) -> (outputs, batch_stats)``.

It normalises by the batch's own statistics and updates the running ones; ``labels`` choose the
reverse-attention masks.
"""


class Examples(NamedTuple):
    """A batch, what its attacks made of it, and what the method remembers.

    Attributes:
      batch: the natural examples.
      attacked: images by the name of the request that they answer (``'adversarial'``, ...).
      extras: what ``Method.prepare`` wants to hand to ``Method.loss`` (the negatives, ...).
      state: of the method, after the attack.
      epoch: from 0.
      teacher_logits: what the teacher says about the natural images, if there is one.
    """

    batch: Batch
    attacked: dict[str, Images]
    extras: dict[str, Any]
    state: MethodState
    epoch: Int[Array, ""]
    teacher_logits: Float[Array, "batch classes"] | None = None


class Terms(NamedTuple):
    """The loss of a batch.

    Attributes:
      loss: what is minimised.
      batch_stats: running statistics after this method's forwards.
      natural: outputs of the training-phase forward of the natural images, if there was one.
      metrics: scalars worth logging.
      state: of the method, for the next step.
      adversarial: as ``natural``, of the adversarial images.
    """

    loss: Float[Array, ""]
    batch_stats: BatchStats
    natural: Outputs | None
    metrics: Metrics
    state: MethodState
    adversarial: Outputs | None = None


class Plan(NamedTuple):
    """The attacks a method asks for, and what it keeps for its loss."""

    requests: dict[str, AttackRequest]
    extras: dict[str, Any]


Prepare = Callable[[Predict, Batch, Key[Array, ""], Int[Array, ""]], Plan]
"""Plans the attacks on a batch, ``(predict, batch, key, epoch) -> plan``.

``predict`` is the network in the evaluation phase.
"""

Attack = Callable[
    [Predict, dict[str, AttackRequest], MethodState], tuple[dict[str, Images], MethodState]
]
"""Carries the plan out, ``(predict, requests, state) -> (attacked, state)``."""

Loss = Callable[[Forward, BatchStats, Examples], Terms]
"""The loss of an attacked batch, differentiated in the parameters inside its first argument."""

Gradient = Callable[
    [Callable[[PyTree], tuple[Float[Array, ""], Any]], PyTree, Int[Array, ""]],
    tuple[tuple[Float[Array, ""], Any], PyTree],
]
"""Differentiates the loss, ``(loss, params, epoch) -> ((value, auxiliary), gradients)``.

``loss`` maps parameters to its value and auxiliary output, as for ``has_aux=True``.
"""


def attack_as_planned(predict, requests, state):
    """Runs the requests; the method remembers nothing of it."""
    return run_requests(predict, requests), state


InitState = Callable[[Int[Array, "examples"], int], MethodState]
"""What a method remembers before the first step, ``(labels, num_classes) -> state``.

``labels`` are those of all training examples, in the order of ``Batch.indices``.
"""


def no_state(labels, num_classes):
    """Nothing to remember from step to step."""
    del labels, num_classes
    return {}


def plain_gradient(loss, params, epoch):
    """The gradient at the parameters themselves."""
    del epoch
    return jax.value_and_grad(loss, has_aux=True)(params)


class Method(NamedTuple):
    """How a batch becomes a training loss and its gradient.

    Attributes:
      prepare: plans the attacks.
      loss: of the attacked batch.
      init_state: what the method remembers before the first step; a part of the train state, so it
        is checkpointed and resumed.
      attack: carries the plan out.
      gradient: differentiates the loss.
    """

    prepare: Prepare
    loss: Loss
    init_state: InitState = no_state
    attack: Attack = attack_as_planned
    gradient: Gradient = plain_gradient


def accuracy(outputs: Outputs, labels: Int[Array, "batch"]) -> Float[Array, ""]:
    """Share of the batch that the final logits classify correctly.

    In the training phase a network with reverse attention is told the label by its masks, so there
    this says nothing about how it will classify: look at the selection split for that.
    """
    return jnp.mean((jnp.argmax(outputs.logits, axis=-1) == labels).astype(jnp.float32))


PairLoss = Callable[[Outputs, Outputs, Examples], tuple[Float[Array, ""], Metrics, MethodState]]
"""``(natural, adversarial, examples) -> (loss, metrics, state)``; a method that remembers nothing
returns ``examples.state``."""


def natural_and_adversarial(settings: AttackSettings, pair_loss: PairLoss) -> Method:
    """Attacks every image, then compares the two training-phase forwards, the natural one first.

    Args:
      settings: the untargeted attack.
      pair_loss: of the outputs for the natural and for the adversarial images.
    """

    def loss(forward, batch_stats, examples):
        images, labels, _ = examples.batch
        natural, batch_stats = forward(batch_stats, images, labels)
        adversarial, batch_stats = forward(batch_stats, examples.attacked["adversarial"], labels)
        value, metrics, state = pair_loss(natural, adversarial, examples)
        accuracies = {
            "batch_accuracy_natural": accuracy(natural, labels),
            "batch_accuracy_adversarial": accuracy(adversarial, labels),
        }
        return Terms(value, batch_stats, natural, metrics | accuracies, state, adversarial)

    return Method(untargeted(settings), loss)


def untargeted(settings: AttackSettings):
    """Plans the untargeted attack on every natural image (paper eq. 2), as ``'adversarial'``."""

    def prepare(predict, batch, key, epoch):
        del predict, epoch
        keys = example_keys(key, ADVERSARIAL, batch.indices)
        request = AttackRequest(settings, batch.images, batch.labels, False, keys)
        return Plan({"adversarial": request}, {})

    return prepare


def _needs_an_attack(config, setting):
    if config.method.name == "natural":
        raise UsageError(
            f"{setting}: needs an adversarial method (config.method.name), not 'natural'"
        )


def _needs_epochs_after(config, field, epochs):
    if epochs >= config.epochs:
        raise UsageError(
            f"config.{field}={epochs}: must be less than config.epochs={config.epochs}, or what "
            "comes after them never does"
        )
