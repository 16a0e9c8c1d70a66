"""The attacks of the paper's evaluation: FGSM, PGD-40 and C&W-40, with and without the heads."""

import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ancra_jax import attacks
from ancra_jax.attacks.model import example_keys
from ancra_jax.config.schema import EvaluationConfig
from ancra_jax.data import batches_for_evaluation
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.spec import Arrays, Model, Spec, Task
from ancra_jax.results.names import HEADS, NATURAL
from ancra_jax.run.files import read_arrays, write_arrays
from ancra_jax.types import Batch

SAVE_EVERY_SECONDS = 20.0
_OBJECTIVES = {
    "cross_entropy": attacks.objectives.cross_entropy,
    "margin": attacks.objectives.margin,
}


@dataclass(frozen=True)
class AttackSpec(Spec):
    """One column of the paper's tables; by default the natural images."""

    objective: str = ""  # 'cross_entropy', 'margin', or '' for natural images
    step_size: float = 0.0  # on the [0, 1] pixel scale
    num_steps: int = 0  # 0 for natural images
    random_start: bool = False  # uniform in the ball, or the natural image
    aux_weight: float = 0.0  # of the auxiliary heads in the objective

    def run(self, task: Task) -> tuple[Arrays, dict[str, Any]]:
        """Attack the examples of a task; see ``Spec``.

        All randomness derives from the seed and the examples' indices: the numbers do not depend on
        the batch size.
        """
        target, num_examples, size = task.target, len(task.labels), task.target.batch_size
        arrays = _read_partial(task)
        threat_model = attacks.threat_model(self.norm, self.epsilon)
        saved = time.monotonic()
        for position, (batch, mask) in enumerate(
            batches_for_evaluation(target.split, size, num_examples, target.sharding)
        ):
            rows = slice(position * size, min((position + 1) * size, num_examples))
            if (arrays["predictions"][rows] >= 0).all():
                continue
            adversarial = self.attack(target.model, batch, threat_model, task.key)
            predictions, norms = _judge(target.model, adversarial, batch.images, threat_model)
            count = int(mask.sum())
            arrays["predictions"][rows] = np.asarray(predictions)[:count]
            arrays["norms"][rows] = np.asarray(norms)[:count]
            task.bar.update(rows.stop)
            if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                write_arrays(task.partial, arrays)
                saved = time.monotonic()
        correct = arrays["predictions"] == task.labels
        return arrays | {"labels": task.labels, "correct": correct}, {}

    def attack(
        self, model: Model, batch: Batch, threat_model: attacks.ThreatModel, key: Key[Array, ""]
    ) -> Float[Array, "batch height width channels"]:
        """Return the adversarial images of a batch; of natural images, themselves."""
        if not self.num_steps:
            return batch.images
        objective = _OBJECTIVES[self.objective](model, batch.labels, aux_weight=self.aux_weight)
        start = batch.images
        if self.random_start:
            start = threat_model.random_start(example_keys(key, batch.indices), batch.images)
        return attacks.ascend(
            objective,
            start,
            batch.images,
            threat_model,
            step_size=self.step_size,
            num_steps=self.num_steps,
        )


def specs(config: EvaluationConfig, aux_weight: float, has_aux_heads: bool) -> list[AttackSpec]:
    """Return natural images, FGSM, PGD and C&W; for a network with auxiliary heads also on these.

    Without the heads the attacker differentiates the final logits only (the paper's "without p");
    with them it ascends the combined objective of the training ("with p"). In both, the final
    logits decide what is correct.
    """
    steps = config.num_steps
    natural = AttackSpec(NATURAL, config.norm, config.epsilon)
    fgsm = replace(
        natural, name="fgsm", objective="cross_entropy", step_size=config.epsilon, num_steps=1
    )
    pgd = replace(
        fgsm, name=f"pgd{steps}", step_size=config.step_size, num_steps=steps, random_start=True
    )
    cw = replace(pgd, name=f"cw{steps}", objective="margin")
    final = [fgsm, pgd, cw]
    heads = [replace(one, name=f"{one.name}{HEADS}", aux_weight=aux_weight) for one in final]
    return [natural, *final, *(heads if has_aux_heads else [])]


def _read_partial(task: Task) -> Arrays:
    """Return the arrays of an interrupted attack, or empty ones."""
    empty = {
        "predictions": np.full(len(task.labels), -1, np.int32),
        "norms": np.zeros(len(task.labels), np.float32),
    }
    if not task.partial.exists():
        return empty
    arrays = read_arrays(task.partial, list(empty))
    for name, array in empty.items():
        if arrays[name].shape != array.shape or arrays[name].dtype != array.dtype:
            raise UsageError(f"{task.partial}: is damaged; delete it to begin this attack again")
    return arrays


@jax.jit
def _judge(
    model: Model,
    adversarial: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
    threat_model: attacks.ThreatModel,
) -> tuple[Int[Array, "batch"], Float[Array, "batch"]]:
    predictions = jax.numpy.argmax(model(adversarial).logits, axis=-1)
    return predictions, threat_model.norm(adversarial - images)
