"""What a training method is: attacks on a batch, then a loss over training-phase forwards.

A method is a small record of pure functions. Wrappers (the asymmetric negative contrast, ...) take
a method and return another one, so that options compose instead of branching inside the step.
The attacks see the network with batch normalisation and attention in the evaluation phase.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from ancra_jax import attacks, losses
from ancra_jax.attacks import objectives
from ancra_jax.attacks.objectives import Objective
from ancra_jax.config.schema import AttackConfig, Config, shown
from ancra_jax.errors import UsageError
from ancra_jax.ops.images import Images, Keys, Labels, Values
from ancra_jax.types import Batch, Logits, Outputs, Scalar

ADVERSARIAL, NEGATIVE_CHOICE, NEGATIVE_ATTACK, MASKS = range(4)  # folded into the key of a step

BatchStats = PyTree
Metrics = dict[str, Scalar]
StepKey = Key[Array, ""]
Epoch = Int[Array, ""]  # from 0

Model = Callable[[Images], Outputs]
MethodState = dict[str, PyTree]
"""What a method remembers from step to step, by name; wrappers add names of their own."""
Attacked = tuple[dict[str, Images], MethodState]
"""The attacked images by the name of their request, and the method's state after the attack."""

START_SIGMA = 0.001  # of the gaussian start, on the [0, 1] pixel scale (TRADES)


@dataclass(frozen=True, kw_only=True)
class AttackSettings(AttackConfig):
    """The configured attack, of one kind; requests of the same kind run as one batch."""

    aux_weight: float  # of the auxiliary heads in the objective; 0 attacks the final logits only

    @property
    def threat_model(self) -> attacks.ThreatModel:
        """The ball around every image."""
        return attacks.threat_model(self.norm, self.epsilon)


def attack_settings(config: Config) -> AttackSettings:
    """Return the training attack as a configuration describes it."""
    return AttackSettings(**vars(config.attack), aux_weight=config.method.aux_weight)


class AttackRequest(NamedTuple):
    """Images to attack."""

    settings: AttackSettings  # the kind of attack
    images: Images  # natural
    labels: Labels | Logits  # classes in the objective (not used by 'kl'), or soft labels
    descend: bool  # the objective, toward the labels (paper eq. 5); or ascend it (eq. 2)
    keys: Keys  # for the random starts


def run_requests(
    model: Model,
    requests: dict[str, AttackRequest],
    state: MethodState,
    ball: Callable[[attacks.ThreatModel], attacks.ThreatModel] = lambda ball: ball,
) -> Attacked:
    """Attack all images of all requests; those of one kind together, as one larger batch.

    ``ball`` makes the ball that an attack moves in out of the threat model of its settings. The
    state is returned as it was.
    """
    groups: dict[AttackSettings, dict[str, tuple[Array, ...]]] = {}
    for name, (settings, images, labels, descend, keys) in requests.items():
        signs = jnp.full(len(labels), -1.0 if descend else 1.0, jnp.float32)
        groups.setdefault(settings, {})[name] = images, labels, signs, keys
    attacked: dict[str, Images] = {}
    for settings, group in groups.items():
        images, labels, signs, keys = jax.tree.map(_interleaved, *group.values())
        threat_model = ball(settings.threat_model)
        result = attacks.ascend(
            signed_objective(model, settings, images, labels, signs),
            random_start(settings, threat_model, keys, images),
            images,
            threat_model,
            step_size=settings.step_size,
            num_steps=settings.num_steps,
            loop="compiled",
        )
        attacked |= {name: result[i :: len(group)] for i, name in enumerate(group)}
    return attacked, state


def random_start(
    settings: AttackSettings, threat_model: attacks.ThreatModel, keys: Keys, images: Images
) -> Images:
    """Draw where the attack on ``images`` starts, in the manner of ``settings.start``."""
    if settings.start == "gaussian":
        return attacks.gaussian_start(keys, images, sigma=START_SIGMA)
    return threat_model.random_start(keys, images)


def _interleaved(*arrays: Array) -> Array:
    # Neighbours belong to one example, so that every part of a sharded batch stays on its device.
    return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def signed_objective(
    model: Model, settings: AttackSettings, images: Images, labels: Labels | Logits, sign: Values
) -> Objective:
    """Return what the attack ascends: the objective of ``settings`` times each example's sign."""
    objective: Objective
    if settings.objective == "kl":
        objective = objectives.kl_divergence(model, model(images), aux_weight=settings.aux_weight)
    elif labels.ndim == 2:  # soft labels: less their own entropy, which has no gradient
        natural, targets = model(images), jnp.log(jnp.maximum(labels, jnp.finfo(labels).tiny))
        heads = jnp.broadcast_to(targets, natural.aux_logits.shape)
        reference = natural._replace(logits=targets, aux_logits=heads)
        objective = objectives.kl_divergence(model, reference, aux_weight=settings.aux_weight)
    else:
        objective = objectives.cross_entropy(model, labels, aux_weight=settings.aux_weight)
    return jax.tree_util.Partial(_signed, objective, sign)


def _signed(objective: Objective, sign: Values, images: Images) -> Values:
    return sign * objective(images)


Forward = Callable[[BatchStats, Images, Labels], tuple[Outputs, BatchStats]]
"""A training-phase forward pass, ``(batch_stats, images, labels) -> (outputs, batch_stats)``.

It normalises by the batch's own statistics and updates the running ones; ``labels`` choose the
reverse-attention masks.
"""


class Examples(NamedTuple):
    """A batch, what its attacks made of it, and what the method remembers."""

    batch: Batch  # the natural images with their labels and indices
    attacked: dict[str, Images]  # by the name of the request that they answer ('adversarial', ...)
    extras: dict[str, Any]  # what Method.prepare hands to Method.loss (the negatives, ...)
    state: MethodState  # after the attack
    epoch: Epoch
    teacher_logits: Logits | None = None  # for the natural images, if there is a teacher
    teacher: Model | None = None  # itself, in the evaluation phase
    soft_labels: Logits | None = None  # of Method.soft_labels, if the method has any

    @property
    def targets(self) -> Labels | Logits:
        """What the cross-entropy compares with: the soft labels, else the batch's classes."""
        return self.batch.labels if self.soft_labels is None else self.soft_labels


class Terms(NamedTuple):
    """The loss of a batch, and what came about with it."""

    loss: Scalar  # what is minimised
    batch_stats: BatchStats  # running statistics after this method's forwards
    natural: Outputs | None  # of the training-phase forward of the natural images, if there was one
    metrics: Metrics  # scalars worth logging
    state: MethodState  # for the next step
    adversarial: Outputs | None = None  # for the adversarial images, if there was such a forward


def with_natural(terms: Terms, forward: Forward, batch: Batch) -> tuple[Terms, Outputs]:
    """Return terms and the natural outputs in them; make the forward pass if there was none."""
    if terms.natural is not None:
        return terms, terms.natural
    natural, batch_stats = forward(terms.batch_stats, batch.images, batch.labels)
    return terms._replace(natural=natural, batch_stats=batch_stats), natural


def rows_of(outputs: Outputs, positions: Int[Array, "chosen"]) -> Outputs:
    """Return the outputs for the images at some positions of the batch."""
    return outputs._replace(
        logits=outputs.logits[positions],
        aux_logits=outputs.aux_logits[:, positions],
        features=outputs.features[positions],
    )


class Plan(NamedTuple):
    """The attacks a method asks for, and what it keeps for its loss.

    Arrays over the batch have it as their first axis, along which the step may cut them in parts.
    """

    requests: dict[str, AttackRequest]
    extras: dict[str, Any]

    def softened(self, soft_labels: Logits) -> "Plan":
        """Return the plan in which natural images are attacked by their soft labels."""
        requests = {}
        for name, request in self.requests.items():
            one_hot = jax.nn.one_hot(request.labels, soft_labels.shape[-1])
            labels = soft_labels if name == "adversarial" else one_hot
            requests[name] = request._replace(labels=labels)
        return self._replace(requests=requests)


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
      soft_labels: makes soft labels of a batch from the average of the weights (EMA), ``(averaged
        model, batch, epochs passed) -> [batch, classes]``, which take the place of the classes in
        the attack on natural images and, as ``Examples.targets``, in the loss.
      needs_teacher: the network of another run has a part in the loss, as ``Examples.teacher``.
    """

    prepare: Callable[[Model, Batch, StepKey, Epoch], Plan]
    loss: Callable[[Forward, BatchStats, Examples], Terms]
    init_state: Callable[[Int[Array, "examples"], int], MethodState] = lambda labels, classes: {}
    attack: Callable[..., tuple[dict[str, Images], MethodState]] = run_requests
    gradient: Callable[[LossOfParams, PyTree, Epoch], ValueAndGradient] = plain_gradient
    soft_labels: Callable[[Model, Batch, Scalar], Logits] | None = None
    needs_teacher: bool = False


def accuracy(outputs: Outputs, labels: Labels) -> Scalar:
    """Return the share of the batch that the final logits classify correctly.

    In the training phase a network with reverse attention is told the label by its masks, so there
    this says nothing about how it will classify: look at the selection split for that.
    """
    return jnp.mean((jnp.argmax(outputs.logits, axis=-1) == labels).astype(jnp.float32))


def untargeted(attack: AttackSettings) -> Callable[..., Plan]:
    """Plan the untargeted attack on every natural image (paper eq. 2), as ``'adversarial'``."""

    def prepare(model: Model, batch: Batch, key: StepKey, epoch: Epoch) -> Plan:
        keys = attacks.example_keys(jax.random.fold_in(key, ADVERSARIAL), batch.indices)
        request = AttackRequest(attack, batch.images, batch.labels, False, keys)
        return Plan({"adversarial": request}, {})

    return prepare


def over_heads(
    name: str, term: Callable[..., Scalar], *outputs: Outputs, aux_weight: float
) -> tuple[Scalar, Metrics]:
    """Return a term of the loss, taken over all heads, and its metrics.

    These are the term as ``name``, and that of each head as ``name_final``, ``name_aux1``, ...
    """
    value = losses.combined(term, *outputs, aux_weight=aux_weight)
    return value, {name: value} | named_by_head(name, losses.by_head(term, *outputs))


def named_by_head(name: str, values: dict[str, Scalar]) -> Metrics:
    """Return metrics of each head; nothing is differentiated in them."""
    return {f"{name}_{head}": jax.lax.stop_gradient(value) for head, value in values.items()}


PairTerms = tuple[Scalar, Metrics, MethodState]
"""The loss of a pair of forwards, metrics, and the state: ``examples.state`` if nothing changed."""


def natural_and_adversarial(
    attack: AttackSettings, pair_loss: Callable[[Outputs, Outputs, Examples], PairTerms]
) -> Method:
    """Attack every image, then compare the two training-phase forwards, the natural one first.

    ``pair_loss`` takes the outputs, ``(natural, adversarial, examples) -> (loss, metrics, state)``.
    """

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        images, labels = examples.batch[:2]
        natural, batch_stats = forward(batch_stats, images, labels)
        adversarial, batch_stats = forward(batch_stats, examples.attacked["adversarial"], labels)
        value, metrics, state = pair_loss(natural, adversarial, examples)
        accuracies = {
            "batch_accuracy_natural": accuracy(natural, labels),
            "batch_accuracy_adversarial": accuracy(adversarial, labels),
        }
        return Terms(value, batch_stats, natural, metrics | accuracies, state, adversarial)

    return Method(untargeted(attack), loss)


def is_adversarial(config: Config) -> bool:
    """Return whether the method attacks its images."""
    return config.method.name != "natural"


def check_adversarial(config: Config, setting: str) -> None:
    """Refuse for natural training an option that needs an attack, ``'config.awp.gamma=0.01'``."""
    if not is_adversarial(config):
        name = shown(config, "method.name")
        raise UsageError(f"{setting}: needs an adversarial method, not {name}")


def check_before_end(config: Config, field: str, epochs: int) -> None:
    """Refuse a number of first epochs that is not less than the length of the training."""
    if epochs >= config.epochs:
        raise UsageError(
            f"--config.{field}={epochs}: must be less than {shown(config, 'epochs')}, or what "
            "comes after them never does"
        )
