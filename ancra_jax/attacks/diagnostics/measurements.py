"""The measurements behind the diagnostics: each a function of the job and what is known so far.

Every measurement is a dictionary of arrays over the examples. Attacks are those of this package;
what differs is what is asked of them.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ancra_jax.attacks.apgd import apgd
from ancra_jax.attacks.autoattack.checks import check_start, difference_between_calls
from ancra_jax.attacks.diagnostics.landscape import landscape, noise
from ancra_jax.attacks.job import Job, Known, left_by, over_batches
from ancra_jax.attacks.loop import ascend
from ancra_jax.attacks.model import example_keys, misclassified, model_outputs
from ancra_jax.attacks.objectives import cross_entropy
from ancra_jax.attacks.square import square
from ancra_jax.attacks.success import judge
from ancra_jax.attacks.threat_models import Linf
from ancra_jax.attacks.validation import check_labels, check_logits, forward

Measurement = Callable[[Job, Known], dict[str, np.ndarray]]

UNBOUNDED = 1.0  # under Linf every image is within 1 of every other
EPSILONS = (0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255, 0.5, UNBOUNDED)
CURVE_STEPS = 20
PGD_STEPS = 40
TARGETS, QUERIES = 9, 1000
AUX_WEIGHT = 2.0


def clean(job: Job, known: Known) -> dict[str, np.ndarray]:
    """Which images are classified correctly; classes by rank; how reproducible the outputs are."""
    del known

    def compute(x, y, indices, active):
        logits = np.asarray(forward(job.judged_model("clean", 0, indices), x))
        check_logits(logits, len(logits))
        check_labels(np.asarray(y), len(logits), logits.shape[1])
        ranked = np.argsort(-logits, axis=1, kind="stable").astype(np.int32)
        return {"correct": ranked[:, 0] == np.asarray(y), "ranked": ranked}

    found = over_batches(job, np.arange(len(job.images)), compute)
    classes = found["ranked"].shape[1]
    return found | {
        "ranked": found["ranked"][:, : TARGETS + 1],
        "classes": np.array([classes]),
        "difference": np.array([difference_between_calls(job.model, job.images, job.randomized)]),
    }


def one_step(job: Job, known: Known) -> dict[str, np.ndarray]:
    """What FGSM leaves of all examples, whether they were correct before or not."""
    del known

    def compute(x, y, indices, active):
        objective, ball = (
            cross_entropy(job.judged_model("attack fgsm", 0, indices), y),
            job.threat_model,
        )
        found = ascend(objective, x, x, ball, step_size=ball.epsilon, num_steps=1)
        return {"correct": _correct(job, "fgsm", found, y, indices)}

    return over_batches(job, np.arange(len(job.images)), compute)


def many_steps(job: Job, known: Known) -> dict[str, np.ndarray]:
    """What the last iterate of 40 steps of PGD leaves, where any iterate was misclassified, and the
    best loss so far at every iterate."""
    del known

    def compute(x, y, indices, active):
        objective = cross_entropy(job.judged_model("attack pgd", 0, indices), y)
        ball = job.threat_model
        current = ball.random_start(example_keys(job.purpose_key("pgd"), indices), x)
        seen = [_look(objective, current)]
        for _ in range(PGD_STEPS):
            step_size = ball.epsilon / 10
            current = ascend(objective, current, x, ball, step_size=step_size, num_steps=1)
            seen.append(_look(objective, current))
        losses, fooled = map(np.stack, zip(*jax.device_get(seen), strict=True))
        return {
            "correct": _correct(job, "pgd", current, y, indices),
            "met": fooled.any(axis=0),
            "loss": np.maximum.accumulate(losses, axis=0).T,
        }

    return over_batches(job, np.arange(len(job.images)), compute)


def gradients(job: Job, known: Known) -> dict[str, np.ndarray]:
    """Where the cross-entropy's input gradient is exactly 0, at a random start at distance eps."""

    def compute(x, y, indices, active):
        keys = example_keys(job.purpose_key("gradient"), indices)
        model = job.judged_model("attack gradient", 0, indices)
        zero, _ = check_start(model, x, y, keys, job.threat_model, job.num_steps)
        return {"zero": zero}

    del known
    return over_batches(job, np.arange(len(job.images)), compute)


def auto_pgd(
    job: Job, known: Known, *, name: str, after: tuple[str, ...], effort: int = 1
) -> dict[str, np.ndarray]:
    """APGD on the cross-entropy, on what ``after`` left: broken, and claimed to be broken."""

    def compute(x, y, indices, active):
        found = _apgd(job, name, x, y, indices, active, num_steps=effort * job.num_steps, loss="ce")
        return {"broken": _broken(job, name, found, x, y, indices), "claimed": found.success}

    return over_batches(job, left_by(known, after), compute, flags=("broken", "claimed"))


def targeted(job: Job, known: Known) -> dict[str, np.ndarray]:
    """APGD on the targeted DLR toward the classes ranked 2nd to 10th, on what APGD left."""
    ranked = known["clean"]["ranked"]
    loss = "targeted_dlr" if int(known["clean"]["classes"][0]) >= 4 else "targeted_margin"
    broken = np.zeros(len(job.images), bool)
    for rank in range(1, ranked.shape[1]):
        left = np.setdiff1d(left_by(known, ("apgd",)), np.flatnonzero(broken))

        def compute(x, y, indices, active, rows, rank=rank):
            targets = job.placement.place(ranked[rows, rank])
            name = f"targeted {rank}"
            found = _apgd(job, name, x, y, indices, active, loss=loss, targets=targets)
            return {"broken": _broken(job, name, found, x, y, indices)}

        broken |= over_batches(job, left, compute, with_rows=True)["broken"]
    return {"broken": broken}


def heads(job: Job, known: Known) -> dict[str, np.ndarray]:
    """APGD on the cross-entropy of all heads; nothing for a model without auxiliary logits."""
    few = job.placement.place(job.images[: job.placement.batch_size])
    if job.randomized or _num_heads(job.model, few) == 0:
        return {}

    def compute(x, y, indices, active):
        objective = cross_entropy(job.model, y, aux_weight=AUX_WEIGHT)
        found = _apgd(job, "heads", x, y, indices, active, loss=objective)
        return {"broken": _broken(job, "heads", found, x, y, indices)}

    return over_batches(job, left_by(known, _WHITE_BOX), compute)


def gradient_free(job: Job, known: Known) -> dict[str, np.ndarray]:
    """Square on what white-box attacks left; nothing for a randomised model, which it misjudges."""
    if job.randomized:
        return {}

    def compute(x, y, indices, active):
        key = job.purpose_key("square")
        found = square(
            job.model,
            x,
            y,
            job.threat_model,
            key=key,
            indices=indices,
            num_queries=QUERIES,
            active=active,
        )
        return {"broken": _broken(job, "square", found, x, y, indices)}

    return over_batches(job, left_by(known, _WHITE_BOX), compute)


def curve(job: Job, known: Known) -> dict[str, np.ndarray]:
    """Which examples stay correct under 20 steps of APGD, over Linf radii from 0 to 1."""
    columns = [known["clean"]["correct"]]
    for number, epsilon in enumerate(EPSILONS[1:]):
        ball = Linf(epsilon)

        def compute(x, y, indices, active, ball=ball, name=f"curve {number}"):
            found = _apgd(
                job, name, x, y, indices, active, loss="ce", num_steps=CURVE_STEPS, ball=ball
            )
            return {"broken": _broken(job, name, found, x, y, indices, ball)}

        broken = over_batches(job, left_by(known, ()), compute)["broken"]
        columns.append(columns[0] & ~broken)
    return {"correct": np.stack(columns, axis=1)}


_WHITE_BOX = ("apgd", "targeted", "longer", "restarted")

MEASUREMENTS: dict[str, Measurement] = {
    "clean": clean,
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


def _apgd(job, name, x, y, indices, active, *, loss, num_steps=None, targets=None, ball=None):
    return apgd(
        job.model,
        x,
        y,
        ball or job.threat_model,
        loss=loss,
        targets=targets,
        key=job.purpose_key(name),
        indices=indices,
        num_steps=num_steps or job.num_steps,
        active=active,
        randomized=job.randomized,
    )


def _broken(job, name, found, x, y, indices, ball=None):
    model = job.judged_model(name, 0, indices)
    adversarial, _ = judge(model, found.images, x, y, ball or job.threat_model)
    return adversarial & found.success


def _correct(job, name, images, y, indices):
    return jnp.argmax(forward(job.judged_model(name, 0, indices), images), axis=-1) == y


@jax.jit
def _look(objective, images):
    values, logits = objective.values_and_logits(images)
    return values, misclassified(logits, objective.operands[0])


def _num_heads(model, images):
    return jax.eval_shape(model_outputs, model, images)[1].shape[0]
