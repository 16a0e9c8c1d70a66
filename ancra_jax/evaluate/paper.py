"""The attacks of the paper's evaluation: FGSM, PGD-40 and C&W-40, with and without the heads."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ancra_jax import attacks
from ancra_jax.attacks.model import Logits, example_keys
from ancra_jax.attacks.validation import check_finite
from ancra_jax.config.schema import Config
from ancra_jax.data import batches_for_evaluation
from ancra_jax.evaluate.examples import Keeper
from ancra_jax.evaluate.spec import Arrays, Model, Spec, Task
from ancra_jax.ops.files import read_arrays, write_arrays
from ancra_jax.ops.images import Images
from ancra_jax.results.names import HEADS, NATURAL
from ancra_jax.types import Batch

SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True)
class Settings:
    """How one column of the paper's tables is attacked; by default not at all."""

    norm: str
    epsilon: float  # radius of the ball, on the [0, 1] pixel scale
    objective: str = ""  # a function of ``attacks.objectives``; '' for natural images
    step_size: float = 0.0  # on the [0, 1] pixel scale
    num_steps: int = 0  # 0 for natural images
    random_start: bool = False  # uniform in the ball, or the natural image
    aux_weight: float = 0.0  # of the auxiliary heads in the objective


def specs(config: Config) -> list[Spec]:
    """Return natural images, FGSM, PGD and C&W; for a network with auxiliary heads also on these.

    Without the heads the attacker differentiates the final logits only (the paper's "without p");
    with them it ascends the combined objective of the training ("with p"). In both, the final
    logits decide what is correct.
    """
    norm, epsilon = config.evaluation.norm, config.evaluation.epsilon
    size, steps = config.evaluation.step_size, config.evaluation.num_steps
    final = {
        "fgsm": Settings(norm, epsilon, "cross_entropy", epsilon, 1),
        f"pgd{steps}": Settings(norm, epsilon, "cross_entropy", size, steps, random_start=True),
        f"cw{steps}": Settings(norm, epsilon, "margin", size, steps, random_start=True),
    }
    found = {NATURAL: Settings(norm, epsilon), **final}
    if config.model.reverse_attention:
        weight = config.method.aux_weight
        for name, settings in final.items():
            found[f"{name}{HEADS}"] = replace(settings, aux_weight=weight)
    return [
        Spec(name, asdict(settings), _run, searches=name != NATURAL)
        for name, settings in found.items()
    ]


def _run(task: Task) -> tuple[Arrays, dict[str, Any]]:
    return attack_batches(task, attack, task.target.batch_size)


def attack_batches(
    task: Task, attack: Callable[[Task, Batch, attacks.ThreatModel], Images], size: int
) -> tuple[Arrays, dict[str, Any]]:
    """Attack the examples of a task in batches of a size, a multiple of the number of devices."""
    target = task.target
    num_examples = len(task.labels)
    arrays = {
        "predictions": np.full(num_examples, -1, np.int32),
        "norms": np.zeros(num_examples, np.float32),
    }
    share = target.share
    saved_arrays = share.from_first(
        lambda: read_arrays(task.partial, list(arrays)) if task.partial.exists() else {}
    )
    arrays = {name: saved_arrays.get(name, array) for name, array in arrays.items()}
    keeper = Keeper(task, saved_arrays)
    threat_model = attacks.threat_model(task.settings["norm"], task.settings["epsilon"])
    saved = time.monotonic()
    for position, (batch, _) in enumerate(
        batches_for_evaluation(target.split, size, num_examples, target.sharding, share)
    ):
        rows = slice(position * size, min((position + 1) * size, num_examples))
        if (arrays["predictions"][rows] >= 0).all():
            continue
        with jax.default_matmul_precision(task.search_precision):
            adversarial = attack(task, batch, threat_model)
        *judged, logits = _judge(target.model, adversarial, batch.images, threat_model)
        predictions, norms = share.gather(judged)
        count = rows.stop - rows.start
        if not task.settings["num_steps"]:
            check_finite(share.gather(logits)[:count], np.arange(rows.start, rows.stop))
        arrays["predictions"][rows] = predictions[:count]
        arrays["norms"][rows] = norms[:count]
        if task.settings["num_steps"]:
            correct = arrays["predictions"][rows] == task.labels[rows]
            keeper.offer(rows.start, correct, partial(share.gather, adversarial))
        task.bar.update(rows.stop)
        if share.is_first and time.monotonic() - saved > SAVE_EVERY_SECONDS:
            write_arrays(task.partial, arrays | keeper.arrays)
            saved = time.monotonic()
    correct = arrays["predictions"] == task.labels
    if task.settings["num_steps"]:
        keeper.write(np.where(correct, "", task.identity["attack"]))
    return arrays | {"labels": task.labels, "correct": correct}, {}


def attack(task: Task, batch: Batch, threat_model: attacks.ThreatModel) -> Images:
    """Return the adversarial images of a batch; of natural images, themselves."""
    settings = Settings(**task.settings)
    if not settings.num_steps:
        return batch.images
    make_objective = getattr(attacks.objectives, settings.objective)
    start = batch.images
    if settings.random_start:
        start = threat_model.random_start(example_keys(task.key, batch.indices), batch.images)
    return attacks.ascend(
        make_objective(task.target.model, batch.labels, aux_weight=settings.aux_weight),
        start,
        batch.images,
        threat_model,
        step_size=settings.step_size,
        num_steps=settings.num_steps,
    )


@jax.jit
def _judge(
    model: Model, adversarial: Images, images: Images, threat_model: attacks.ThreatModel
) -> tuple[Int[Array, "batch"], Float[Array, "batch"], Logits]:
    logits = model(adversarial).logits
    predictions = jax.numpy.argmax(logits, axis=-1)
    return predictions, threat_model.norm(adversarial - images), logits
