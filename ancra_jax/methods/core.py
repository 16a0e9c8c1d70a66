"""What a training method is: attacks on a batch, then a loss over training-phase forwards.

A method is a small record of pure functions. Wrappers (the asymmetric negative contrast, ...) take
a method and return another one, so that options compose instead of branching inside the step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from ancra_jax.attacks import example_keys
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods.attack import AttackRequest, AttackSettings, MethodState, Model, run_requests
from ancra_jax.ops.images import Images, Labels
from ancra_jax.types import Batch, Logits, Outputs, Scalar

ADVERSARIAL, NEGATIVE_CHOICE, NEGATIVE_ATTACK = range(3)  # folded into the key of a step

BatchStats = PyTree
Metrics = dict[str, Scalar]
StepKey = Key[Array, ""]
Epoch = Int[Array, ""]  # from 0

Forward = Callable[[BatchStats, Images, Labels], tuple[Outputs, BatchStats]]
"""A training-phase forward pass, ``(batch_stats, images, labels) -> (outputs, batch_stats)``.

It normalises by the batch's own statistics and updates the running ones; ``labels`` choose the
reverse-attention masks.
"""


class Examples(NamedTuple):
    """A batch, what its attacks made of it, and what the method remembers.

    Attributes:
      batch: the natural images with their labels and indices.
      attacked: images by the name of the request that they answer (``'adversarial'``, ...).
      extras: what ``Method.prepare`` hands to ``Method.loss`` (the negatives, ...).
      state: of the method, after the attack.
      epoch: from 0.
      teacher_logits: of the teacher for the natural images, if there is one.
    """

    batch: Batch
    attacked: dict[str, Images]
    extras: dict[str, Any]
    state: MethodState
    epoch: Epoch
    teacher_logits: Logits | None = None


class Terms(NamedTuple):
    """The loss of a batch.

    Attributes:
      loss: what is minimised.
      batch_stats: running statistics after this method's forwards.
      natural: outputs of the training-phase forward of the natural images, if there was one.
      metrics: scalars worth logging.
      state: of the method, for the next step.
      adversarial: outputs for the adversarial images, if there was such a forward.
    """

    loss: Scalar
    batch_stats: BatchStats
    natural: Outputs | None
    metrics: Metrics
    state: MethodState
    adversarial: Outputs | None = None


class Plan(NamedTuple):
    """The attacks a method asks for, and what it keeps for its loss."""

    requests: dict[str, AttackRequest]
    extras: dict[str, Any]


LossOfParams = Callable[[PyTree], tuple[Scalar, Any]]  # with an auxiliary output, as for jax.grad
ValueAndGradient = tuple[tuple[Scalar, Any], PyTree]  # ((loss, auxiliary output), gradient)


def plain_gradient(loss: LossOfParams, params: PyTree, epoch: Epoch) -> ValueAndGradient:
    """Differentiate the loss at the parameters themselves."""
    return jax.value_and_grad(loss, has_aux=True)(params)


class Method(NamedTuple):
    """How a batch becomes a training loss and its gradient.

    Attributes:
      prepare: plans the attacks on a batch, ``(model, batch, key, epoch) -> plan``, with ``model``
        the network in the evaluation phase.
      loss: of the attacked batch, ``(forward, batch_stats, examples) -> terms``, differentiated in
        the parameters inside ``forward``.
      init_state: makes what the method remembers before the first step, ``(labels, num_classes) ->
        state``, from the labels of all training examples, in the order of ``Batch.indices``. The
        state is a part of the train state, so it is checkpointed and resumed.
      attack: carries the plan out, ``(model, requests, state) -> (attacked, state)``.
      gradient: differentiates the loss, ``(loss, params, epoch) -> ((loss, auxiliary), gradient)``.
    """

    prepare: Callable[[Model, Batch, StepKey, Epoch], Plan]
    loss: Callable[[Forward, BatchStats, Examples], Terms]
    init_state: Callable[[Int[Array, "examples"], int], MethodState] = lambda labels, classes: {}
    attack: Callable[..., tuple[dict[str, Images], MethodState]] = run_requests
    gradient: Callable[[LossOfParams, PyTree, Epoch], ValueAndGradient] = plain_gradient


def accuracy(outputs: Outputs, labels: Labels) -> Scalar:
    """Return the share of the batch that the final logits classify correctly.

    In the training phase a network with reverse attention is told the label by its masks, so there
    this says nothing about how it will classify: look at the selection split for that.
    """
    return jnp.mean((jnp.argmax(outputs.logits, axis=-1) == labels).astype(jnp.float32))


def untargeted(attack: AttackSettings) -> Callable[..., Plan]:
    """Plan the untargeted attack on every natural image (paper eq. 2), as ``'adversarial'``."""

    def prepare(model: Model, batch: Batch, key: StepKey, epoch: Epoch) -> Plan:
        keys = example_keys(jax.random.fold_in(key, ADVERSARIAL), batch.indices)
        request = AttackRequest(attack, batch.images, batch.labels, False, keys)
        return Plan({"adversarial": request}, {})

    return prepare


PairTerms = tuple[Scalar, Metrics, MethodState]
"""The loss of a pair of forwards, metrics, and the state: ``examples.state`` if nothing changed."""


def natural_and_adversarial(
    attack: AttackSettings, pair_loss: Callable[[Outputs, Outputs, Examples], PairTerms]
) -> Method:
    """Attack every image, then compare the two training-phase forwards, the natural one first.

    ``pair_loss`` takes the outputs, ``(natural, adversarial, examples) -> (loss, metrics, state)``.
    """

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        images, labels, _ = examples.batch
        natural, batch_stats = forward(batch_stats, images, labels)
        adversarial, batch_stats = forward(batch_stats, examples.attacked["adversarial"], labels)
        value, metrics, state = pair_loss(natural, adversarial, examples)
        accuracies = {
            "batch_accuracy_natural": accuracy(natural, labels),
            "batch_accuracy_adversarial": accuracy(adversarial, labels),
        }
        return Terms(value, batch_stats, natural, metrics | accuracies, state, adversarial)

    return Method(untargeted(attack), loss)


def check_adversarial(config: Config, setting: str) -> None:
    """Refuse for natural training an option that needs an attack, ``'config.awp.gamma=0.01'``."""
    if config.method.name == "natural":
        raise UsageError(f"{setting}: needs an adversarial method, not {config.method.name=}")


def check_before_end(config: Config, field: str, epochs: int) -> None:
    """Refuse a number of first epochs after which nothing of the training is left."""
    if epochs >= config.epochs:
        raise UsageError(
            f"config.{field}={epochs}: must be less than {config.epochs=}, or what comes after "
            "them never does"
        )
