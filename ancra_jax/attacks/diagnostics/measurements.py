"""The measurements behind the diagnostics: each a dictionary of arrays over the examples.

Attacks are those of this package; what differs is what is asked of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ancra_jax.attacks import objectives
from ancra_jax.attacks.apgd import apgd
from ancra_jax.attacks.autoattack.checks import check_start, difference_between, repeated_calls
from ancra_jax.attacks.autoattack.ensemble import fitting_loss
from ancra_jax.attacks.job import Arrays, Batch, Job, Known, Numbers, Run
from ancra_jax.attacks.loop import ascend
from ancra_jax.attacks.model import (
    Model,
    float32_logits,
    fold_each,
    forward,
    misclassified,
    model_outputs,
)
from ancra_jax.attacks.objectives import LogitsObjective, value_and_input_gradient
from ancra_jax.attacks.square import square
from ancra_jax.attacks.threat_models import Linf, longest
from ancra_jax.attacks.validation import AttackResult
from ancra_jax.ops.images import Flags, Images, Keys, Labels, Values

Measurement = Callable[[Job, Known], Arrays]
Scalar = Float[Array, ""]

UNBOUNDED = 1.0  # under Linf every image is within 1 of every other
EPSILONS = (0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255, 0.5, UNBOUNDED)
CURVE_STEPS, PGD_STEPS = 20, 40
QUERIES = 1000
TARGETS = 9
AUX_WEIGHT = 2.0
NOISE_DRAWS, NOISE = 100, 4 / 255
LANDSCAPE_EXAMPLES, LANDSCAPE_POINTS, LANDSCAPE_REACH = 4, 21, 2.0
_WHITE_BOX = ("apgd", "targeted", "longer", "restarted")


def natural(job: Job, known: Known) -> Arrays:
    """Measure which images are classified correctly, how classes rank, how outputs repeat."""
    logits = job.logits_of(np.arange(len(job.images)))
    ranked = np.argsort(-logits, axis=1, kind="stable").astype(np.int32)
    found = {"correct": ranked[:, 0] == job.labels, "ranked": ranked[:, : TARGETS + 1]}
    difference = difference_between(repeated_calls(job))
    once = {"classes": np.array([job.num_classes]), "difference": np.array([difference])}
    return found | once


def one_step(job: Job, batch: Batch) -> dict[str, Array]:
    """Measure what FGSM leaves of all examples, whether they were correct before or not."""
    objective = _cross_entropy(job, "fgsm", batch)
    ball = job.threat_model
    x = batch.images
    found = ascend(objective, x, x, ball, step_size=ball.epsilon, num_steps=1)
    return {"correct": _correct(job, "fgsm", found, batch)}


def many_steps(job: Job, batch: Batch) -> dict[str, Any]:
    """Measure what the last iterate of 40 steps of PGD leaves, and what happens on the way.

    That is where any iterate was misclassified, and the best loss so far at every iterate.
    """
    objective = _cross_entropy(job, "pgd", batch)
    ball = job.threat_model
    step = partial(ascend, threat_model=ball, step_size=ball.epsilon / 10, num_steps=1)
    current = ball.random_start(job.keys("pgd", batch), batch.images)
    seen = [_look(objective, current)]
    for _ in range(PGD_STEPS):
        current = step(objective, current, batch.images)
        seen.append(_look(objective, current))
    losses, fooled = map(np.stack, zip(*jax.device_get(seen), strict=True))
    return {
        "correct": _correct(job, "pgd", current, batch),
        "met": fooled.any(axis=0),
        "loss": np.maximum.accumulate(losses, axis=0).T,
    }


def gradients(job: Job, batch: Batch) -> dict[str, Array]:
    """Measure where the cross-entropy's input gradient is exactly 0, at distance epsilon."""
    return {"zero": check_start(job, "attack gradient", "gradient", batch)[0]}


def noise(job: Job, batch: Batch) -> Arrays:
    """Measure the mean relative change of the margin under random noise within 4/255.

    Each change counts at most 1. The margin and not the cross-entropy, whose relative changes say
    nothing where it is near 0.
    """
    model = job.judging_model("attack noise", batch)
    keys = job.keys("noise", batch)
    margins = _margins(model, batch.images, batch.labels)
    changes = [
        _noise_change(model, batch.images, batch.labels, fold_each(keys, draw), margins)
        for draw in range(NOISE_DRAWS)
    ]
    return {"change": np.mean(jax.device_get(changes), axis=0)}


def auto_pgd(job: Job, known: Known, *, name: str, after: Sequence[str], effort: int = 1) -> Arrays:
    """Measure what APGD on the cross-entropy breaks of what the attacks ``after`` left."""
    run = _apgd(job, loss="ce", num_steps=effort * job.num_steps)
    return _broken(job, name, run, left_by(known, *after))


def targeted(job: Job, known: Known) -> Arrays:
    """Measure what APGD on the targeted DLR breaks, toward the classes ranked 2nd to 10th."""
    ranked = known["clean"]["ranked"]
    run = _apgd(job, loss=fitting_loss("targeted_dlr", job.num_classes))
    left = left_by(known, "apgd")
    broken = np.zeros(len(job.images), bool)
    for rank in range(1, ranked.shape[1]):
        chosen = left[~broken[left]]
        broken |= _broken(job, f"targeted {rank}", run, chosen, ranked[:, rank])["broken"]
    return {"broken": broken}


def heads(job: Job, known: Known) -> Arrays:
    """Measure what APGD on the cross-entropy of all heads breaks of what white-box attacks left.

    Nothing for a model without auxiliary logits.
    """
    if job.randomized or len(jax.eval_shape(model_outputs, job.model, job.images[:1])[1]) == 0:
        return {}

    def run(model: Model, images: Images, labels: Labels, *args: Any, **more: Any) -> AttackResult:
        objective = objectives.cross_entropy(model, labels, aux_weight=AUX_WEIGHT)
        return _apgd(job, loss=objective)(model, images, labels, *args, **more)

    return _broken(job, "heads", run, left_by(known, *_WHITE_BOX))


def gradient_free(job: Job, known: Known) -> Arrays:
    """Measure what Square breaks of what white-box attacks left.

    Nothing for a randomised model, which it misjudges.
    """
    if job.randomized:
        return {}
    run = partial(square, num_queries=QUERIES)
    return _broken(job, "square", run, left_by(known, *_WHITE_BOX))


def curve(job: Job, known: Known) -> Arrays:
    """Measure which examples stay correct under 20 steps of APGD, over Linf radii from 0 to 1."""
    correct = known["clean"]["correct"]
    run = _apgd(job, loss="ce", num_steps=CURVE_STEPS)
    columns = [correct]
    for number, epsilon in enumerate(EPSILONS[1:]):
        within = replace(job, threat_model=Linf(epsilon))
        broken = _broken(within, f"curve {number}", run, left_by(known))["broken"]
        columns.append(correct & ~broken)
    return {"correct": np.stack(columns, axis=1)}


def landscape(job: Job, known: Known) -> Arrays:
    """Measure the cross-entropy around a few images, along the gradient's sign and random signs.

    ``offsets`` are those of both directions, on the [0, 1] pixel scale; ``losses`` are
    [examples, gradient, random].
    """
    chosen = np.arange(min(LANDSCAPE_EXAMPLES, len(job.images)))
    reach = LANDSCAPE_REACH * float(job.threat_model.epsilon)
    reach /= longest(job.threat_model, job.images[0].shape)  # under Linf, of a step of that length
    offsets = np.linspace(-reach, reach, LANDSCAPE_POINTS, dtype=np.float32)
    few = replace(job, placement=job.placement.smaller(len(chosen)))
    batch = next(few.batches(chosen))
    objective = _cross_entropy(job, "landscape", batch)
    directions = _directions(objective, batch.images, job.keys("landscape", batch))
    grid = [
        [_value(objective, _moved(batch.images, directions, along, across)) for across in offsets]
        for along in offsets
    ]
    losses = few.placement.fetch(np.asarray(jax.device_get(grid)).transpose(2, 0, 1))
    return {"offsets": offsets, "losses": losses[: len(chosen)]}


def _over_all(compute: Callable[[Job, Batch], Mapping[str, Any]]) -> Measurement:
    return lambda job, known: job.over_batches(partial(compute, job))


MEASUREMENTS: dict[str, Measurement] = {
    "clean": natural,
    "fgsm": _over_all(one_step),
    "pgd": _over_all(many_steps),
    "gradient": _over_all(gradients),
    "noise": _over_all(noise),
    "apgd": partial(auto_pgd, name="apgd", after=()),
    "targeted": targeted,
    "longer": partial(auto_pgd, name="longer", after=("apgd", "targeted"), effort=2),
    "restarted": partial(auto_pgd, name="restarted", after=("apgd", "targeted", "longer")),
    "heads": heads,
    "square": gradient_free,
    "curve": curve,
    "landscape": landscape,
}
"""In the order in which they run: each may use the ones before it."""


def left_by(known: Known, *names: str) -> Numbers:
    """Return the examples that are correct without an attack and that the named ones left so."""
    left = known["clean"]["correct"].copy()
    for name in names:
        left &= ~known[name]["broken"]
    return np.flatnonzero(left)


def _cross_entropy(job: Job, name: str, batch: Batch) -> LogitsObjective:
    return objectives.cross_entropy(job.judging_model(f"attack {name}", batch), batch.labels)


def _correct(job: Job, name: str, images: Images, batch: Batch) -> Flags:
    logits = forward(job.judging_model(name, batch), images)
    return jnp.argmax(logits, axis=-1) == batch.labels


def _apgd(job: Job, **options: Any) -> Run:
    return partial(apgd, **{"num_steps": job.num_steps, "randomized": job.randomized} | options)


def _broken(
    job: Job, name: str, run: Run, examples: Numbers, targets: Numbers | None = None
) -> Arrays:
    """Return which of the chosen examples an attack breaks, and which it claims to break."""

    def compute(batch: Batch) -> dict[str, Array]:
        found, adversarial, *_ = job.attack(run, name, batch, targets=targets)
        return {"broken": adversarial & found.success, "claimed": found.claimed}

    nothing = np.zeros(len(job.images), bool)
    return {"broken": nothing, "claimed": nothing} | job.over_batches(compute, examples)


_value = jax.jit(LogitsObjective.__call__)


@jax.jit
def _look(objective: LogitsObjective, images: Images) -> tuple[Values, Flags]:
    values, logits = objective.values_and_logits(images)
    return values, misclassified(logits, objective.operands[0])


@jax.jit
def _margins(model: Model, images: Images, labels: Labels) -> Values:
    return objectives.margin_term(float32_logits(model, images), labels)


@jax.jit
def _noise_change(
    model: Model, images: Images, labels: Labels, keys: Keys, margins: Values
) -> Values:
    noisy = jnp.clip(images + NOISE * Linf(NOISE).noise(keys, images), 0.0, 1.0)
    change = jnp.abs(_margins(model, noisy, labels) - margins)
    return jnp.minimum(change / (jnp.abs(margins) + 1e-12), 1.0)


@jax.jit
def _directions(objective: LogitsObjective, images: Images, keys: Keys) -> tuple[Images, Images]:
    _, gradients = value_and_input_gradient(objective, images)
    random = jax.vmap(lambda key, x: jax.random.rademacher(key, x.shape, x.dtype))(keys, images)
    return jnp.sign(gradients), random


@jax.jit
def _moved(
    images: Images, directions: tuple[Images, Images], along: Scalar, across: Scalar
) -> Images:
    return jnp.clip(images + along * directions[0] + across * directions[1], 0.0, 1.0)
