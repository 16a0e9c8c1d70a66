"""Projected gradient descent, and the fast gradient sign method as its one-step case."""

import jax

from ancra_jax.attacks.arguments import AnyKey, Number, as_length, as_whole
from ancra_jax.attacks.loop import LoopKind, ascend
from ancra_jax.attacks.model import Model, judge
from ancra_jax.attacks.objectives import Objective
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import ThreatModel, gaussian_noise, longest
from ancra_jax.attacks.validation import AttackResult, Inputs, checked
from ancra_jax.ops.images import AnyFlags, AnyImages, AnyLabels, Images, Keys, Values


def gaussian_start(keys: Keys, images: Images, sigma: float = 0.001) -> Images:
    """Return ``images + sigma * N(0, 1)``, where the attacks inside TRADES-like training start.

    Not clipped, as in the reference implementations: the first step's projection is the first one.
    ``keys``, one per example, are made by ``attacks.example_keys``; ``sigma`` is on the [0, 1]
    pixel scale.
    """
    return images + sigma * gaussian_noise(keys, images)


@explains_old_calls
def pgd(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    step_size: Number,
    num_steps: int,
    loss: str | Objective = "ce",
    targets: AnyLabels | None = None,
    start: AnyImages | None = None,
    key: AnyKey | None = None,
    indices: AnyLabels | None = None,
    active: AnyFlags | None = None,
    loop: LoopKind = "auto",
) -> AttackResult:
    """Ascend the loss in steps of one length, each projected into the threat model.

    Every step is ``x <- project(x + step_size * direction(gradient))``. The result has the last
    iterate where that is adversarial. ``ancra_jax.attacks`` describes the common arguments.

    Args:
      step_size: length of a step in the threat model's norm, on the [0, 1] pixel scale.
      num_steps: number of steps.
      start: where to start, of the images' shape; taken as it is.
      key: if given, and no ``start``, the attack starts at a random point of the threat model.
        Without either it starts at the natural image.
    """
    num_steps = as_whole(num_steps, "num_steps")
    common = dict(targets=targets, active=active, indices=indices, key=key, start=start)
    inputs = checked(model, images, labels, threat_model, loop=loop, loss=loss, **common)
    natural, first = inputs.problem.images, inputs.start
    step_size = as_length(step_size, "step_size", longest(threat_model, natural.shape[1:]))
    if first is None:
        first = natural
        if key is not None:
            first = threat_model.random_start(inputs.keys(), first)
    return _judged(inputs, first, step_size, num_steps, loop)


@explains_old_calls
def fgsm(
    model: Model,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
    *,
    loss: str | Objective = "ce",
    targets: AnyLabels | None = None,
    key: AnyKey | None = None,
    indices: AnyLabels | None = None,
    active: AnyFlags | None = None,
    loop: LoopKind = "auto",
) -> AttackResult:
    """Run the fast gradient sign method: one PGD step of length epsilon from the natural image.

    Under ``L2`` the step follows the normalised gradient. Nothing is random: ``key`` and
    ``indices`` are not used. ``ancra_jax.attacks`` describes the common arguments.

    References:
      Goodfellow, Shlens & Szegedy, Explaining and harnessing adversarial examples, ICLR 2015.
    """
    common = dict(targets=targets, active=active, indices=indices, key=key)
    inputs = checked(model, images, labels, threat_model, loop=loop, loss=loss, **common)
    return _judged(inputs, inputs.problem.images, inputs.problem.threat_model.epsilon, 1, loop)


def _judged(
    inputs: Inputs,
    first: Images,
    step_size: Number,
    num_steps: int,
    loop: LoopKind,
) -> AttackResult:
    """Ascend the loss, and judge the last iterate by a fresh forward pass."""
    problem, objective = inputs.problem, inputs.objective
    natural, ball = problem.images, problem.threat_model
    last = ascend(
        objective, first, natural, ball, step_size=step_size, num_steps=num_steps, loop=loop
    )
    success, *_ = judge(problem.model, last, natural, problem.labels, ball)
    value = _value(objective, last)
    return problem.result(success, last, value, num_steps + 1, judged=True)


@jax.jit
def _value(objective: Objective, images: Images) -> Values:
    return objective(images)
