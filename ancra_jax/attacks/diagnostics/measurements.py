"""The measurements behind the diagnostics: each a function of the job and what is known so far.

Every measurement is a dictionary of arrays over the examples. Attacks are those of this package;
what differs is what is asked of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ancra_jax.attacks.apgd import apgd
from ancra_jax.attacks.autoattack.checks import check_start, difference_between, repeated_calls
from ancra_jax.attacks.autoattack.ensemble import fitting_loss
from ancra_jax.attacks.diagnostics.landscape import landscape, noise
from ancra_jax.attacks.job import Arrays, Batch, Job, Known
from ancra_jax.attacks.loop import ascend
from ancra_jax.attacks.model import Images, example_keys, misclassified, model_outputs
from ancra_jax.attacks.objectives import LogitsObjective, cross_entropy
from ancra_jax.attacks.square import square
from ancra_jax.attacks.success import judge
from ancra_jax.attacks.threat_models import Linf, ThreatModel
from ancra_jax.attacks.types import AttackResult
from ancra_jax.attacks.validation import forward

Measurement = Callable[[Job, Known], Arrays]

UNBOUNDED = 1.0  # under Linf every image is within 1 of every other
EPSILONS = (0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255, 0.5, UNBOUNDED)
CURVE_STEPS = 20
PGD_STEPS = 40
TARGETS, QUERIES = 9, 1000
AUX_WEIGHT = 2.0
_WHITE_BOX = ("apgd", "targeted", "longer", "restarted")


def natural(job: Job, known: Known) -> Arrays:
    """Measure which images are classified correctly, how classes rank, how outputs repeat."""

    def compute(batch: Batch) -> Arrays:
        ranked = np.argsort(-job.natural_logits(batch), axis=1, kind="stable").astype(np.int32)
        return {"correct": ranked[:, 0] == job.labels[batch.examples], "ranked": ranked}

    found = job.over_batches(_everything(job), compute)
    difference = difference_between(repeated_calls(job.model, job.images, job.randomized))
    return {
        "correct": found["correct"],
        "ranked": found["ranked"][:, : TARGETS + 1],
        "classes": np.array([job.num_classes]),
        "difference": np.array([difference]),
    }


def one_step(job: Job, known: Known) -> Arrays:
    """Measure what FGSM leaves of all examples, whether they were correct before or not."""

    def compute(batch: Batch) -> dict[str, Array]:
        objective, ball = _cross_entropy(job, "fgsm", batch), job.threat_model
        start = batch.images
        found = ascend(objective, start, start, ball, step_size=ball.epsilon, num_steps=1)
        return {"correct": _correct(job, "fgsm", found, batch)}

    return job.over_batches(_everything(job), compute)


def many_steps(job: Job, known: Known) -> Arrays:
    """Measure what the last iterate of 40 steps of PGD leaves, and what happens on the way.

    That is where any iterate was misclassified, and the best loss so far at every iterate.
    """
    ball = job.threat_model

    def compute(batch: Batch) -> dict[str, Any]:
        objective = _cross_entropy(job, "pgd", batch)
        keys = example_keys(job.purpose_key("pgd"), batch.indices)
        current = ball.random_start(keys, batch.images)
        seen = [_look(objective, current)]
        for _ in range(PGD_STEPS):
            current = ascend(
                objective, current, batch.images, ball, step_size=ball.epsilon / 10, num_steps=1
            )
            seen.append(_look(objective, current))
        losses, fooled = map(np.stack, zip(*jax.device_get(seen), strict=True))
        return {
            "correct": _correct(job, "pgd", current, batch),
            "met": fooled.any(axis=0),
            "loss": np.maximum.accumulate(losses, axis=0).T,
        }

    return job.over_batches(_everything(job), compute)


def gradients(job: Job, known: Known) -> Arrays:
    """Measure where the cross-entropy's input gradient is exactly 0, at a start at distance
    epsilon."""

    def compute(batch: Batch) -> dict[str, Array]:
        keys = example_keys(job.purpose_key("gradient"), batch.indices)
        model = job.judging_model("attack gradient", 0, batch)
        zero, _ = check_start(
            model, batch.images, batch.labels, keys, job.threat_model, job.num_steps
        )
        return {"zero": zero}

    return job.over_batches(_everything(job), compute)


def auto_pgd(
    job: Job, known: Known, *, name: str, after: tuple[str, ...], effort: int = 1
) -> Arrays:
    """Measure what APGD on the cross-entropy breaks of what the attacks ``after`` left."""
    attack = partial(_apgd, job, name, loss="ce", num_steps=effort * job.num_steps)
    return _broken(job, name, attack, left_by(known, *after))


def targeted(job: Job, known: Known) -> Arrays:
    """Measure what APGD on the targeted DLR breaks, toward the classes ranked 2nd to 10th."""
    ranked = known["clean"]["ranked"]
    loss = fitting_loss("targeted_dlr", job.num_classes)
    left, broken = left_by(known, "apgd"), np.zeros(len(job.images), bool)
    for rank in range(1, ranked.shape[1]):
        attack = partial(_apgd, job, f"targeted {rank}", loss=loss, targets=ranked[:, rank])
        broken |= _broken(job, f"targeted {rank}", attack, left[~broken[left]])["broken"]
    return {"broken": broken}


def heads(job: Job, known: Known) -> Arrays:
    """Measure what APGD on the cross-entropy of all heads breaks of what white-box attacks left.

    Nothing for a model without auxiliary logits.
    """
    few = job.placement.place(job.images[: job.placement.batch_size])
    aux_logits = jax.eval_shape(model_outputs, job.model, few)[1] if not job.randomized else ()
    if len(aux_logits) == 0:
        return {}

    def attack(batch: Batch) -> AttackResult:
        objective = cross_entropy(job.model, batch.labels, aux_weight=AUX_WEIGHT)
        return _apgd(job, "heads", batch, loss=objective)

    return _broken(job, "heads", attack, left_by(known, *_WHITE_BOX))


def gradient_free(job: Job, known: Known) -> Arrays:
    """Measure what Square breaks of what white-box attacks left.

    Nothing for a randomised model, which it misjudges.
    """
    if job.randomized:
        return {}

    def attack(batch: Batch) -> AttackResult:
        return square(
            job.model,
            batch.images,
            batch.labels,
            job.threat_model,
            key=job.purpose_key("square"),
            indices=batch.indices,
            num_queries=QUERIES,
            active=batch.active,
        )

    return _broken(job, "square", attack, left_by(known, *_WHITE_BOX))


def curve(job: Job, known: Known) -> Arrays:
    """Measure which examples stay correct under 20 steps of APGD, over Linf radii from 0 to 1."""
    correct = known["clean"]["correct"]
    columns = [correct]
    for number, epsilon in enumerate(EPSILONS[1:]):
        name, ball = f"curve {number}", Linf(epsilon)
        attack = partial(_apgd, job, name, loss="ce", num_steps=CURVE_STEPS, ball=ball)
        broken = _broken(job, name, attack, np.flatnonzero(correct), ball)["broken"]
        columns.append(correct & ~broken)
    return {"correct": np.stack(columns, axis=1)}


MEASUREMENTS: dict[str, Measurement] = {
    "clean": natural,
    "fgsm": one_step,
    "pgd": many_steps,
    "gradient": gradients,
    "noise": noise,
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


def left_by(known: Known, *names: str) -> Int[np.ndarray, "chosen"]:
    """Return the examples that are correct without an attack and that the named ones left so."""
    left = known["clean"]["correct"].copy()
    for name in names:
        left &= ~known[name]["broken"]
    return np.flatnonzero(left)


def _everything(job: Job) -> Int[np.ndarray, "examples"]:
    return np.arange(len(job.images))


def _cross_entropy(job: Job, name: str, batch: Batch) -> LogitsObjective:
    return cross_entropy(job.judging_model(f"attack {name}", 0, batch), batch.labels)


def _correct(job: Job, name: str, images: Images, batch: Batch) -> Bool[Array, "batch"]:
    logits = forward(job.judging_model(name, 0, batch), images)
    return jnp.argmax(logits, axis=-1) == batch.labels


def _apgd(
    job: Job,
    name: str,
    batch: Batch,
    *,
    targets: Int[np.ndarray, "examples"] | None = None,
    ball: ThreatModel | None = None,
    num_steps: int | None = None,
    **options: Any,
) -> AttackResult:
    return apgd(
        job.model,
        batch.images,
        batch.labels,
        ball or job.threat_model,
        targets=None if targets is None else job.placement.place(targets[batch.rows]),
        key=job.purpose_key(name),
        indices=batch.indices,
        num_steps=num_steps or job.num_steps,
        active=batch.active,
        randomized=job.randomized,
        **options,
    )


def _broken(
    job: Job,
    name: str,
    attack: Callable[[Batch], AttackResult],
    examples: Int[np.ndarray, "chosen"],
    ball: ThreatModel | None = None,
) -> Arrays:
    """Return which of the chosen examples an attack breaks, and which it claims to break."""

    def compute(batch: Batch) -> dict[str, Array]:
        found, model = attack(batch), job.judging_model(name, 0, batch)
        adversarial, _ = judge(
            model, found.images, batch.images, batch.labels, ball or job.threat_model
        )
        return {"broken": adversarial & found.success, "claimed": found.success}

    nothing = np.zeros(len(job.images), bool)
    return {"broken": nothing, "claimed": nothing} | job.over_batches(examples, compute)


@jax.jit
def _look(
    objective: LogitsObjective, images: Images
) -> tuple[Float[Array, "batch"], Bool[Array, "batch"]]:
    values, logits = objective.values_and_logits(images)
    return values, misclassified(logits, objective.operands[0])
