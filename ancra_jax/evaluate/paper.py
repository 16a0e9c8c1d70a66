"""The attacks of the paper's evaluation: FGSM, PGD-40 and C&W-40, without and with p."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from ancra_jax import attacks
from ancra_jax.attacks.model import example_keys
from ancra_jax.cli.progress import Bar
from ancra_jax.config.schema import EvaluationConfig
from ancra_jax.data import batches_for_evaluation
from ancra_jax.errors import UsageError
from ancra_jax.evaluate.target import Target
from ancra_jax.results.store import ResultStore
from ancra_jax.run.files import read_arrays, write_arrays

SAVE_EVERY_SECONDS = 20.0
_OBJECTIVES = {
    "cross_entropy": attacks.objectives.cross_entropy,
    "margin": attacks.objectives.margin,
}


@dataclass(frozen=True)
class AttackSpec:
    """One column of the paper's tables.

    Attributes:
      name: file name of the result; ``_with_p`` where the auxiliary heads are attacked too.
      objective: ``'cross_entropy'``, ``'margin'``, or ``''`` for natural images.
      norm: ``'linf'`` or ``'l2'``.
      epsilon: radius of the ball, on the [0, 1] pixel scale.
      step_size: of one step, likewise.
      num_steps: of the attack; 0 for natural images.
      random_start: uniform in the ball, or the natural image.
      aux_weight: weight of the auxiliary heads in the objective.
    """

    name: str
    objective: str
    norm: str
    epsilon: float
    step_size: float
    num_steps: int
    random_start: bool
    aux_weight: float

    def run(self, target: Target, identity: dict[str, Any], store: ResultStore, bar: Bar) -> None:
        """Runs the attack; see ``run``."""
        run(self, target, identity, store, bar)

    @property
    def settings(self) -> dict[str, Any]:
        """All but the name, as the result file keeps them."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


def specs(config: EvaluationConfig, aux_weight: float, has_aux_heads: bool) -> list[AttackSpec]:
    """The paper's suite: natural, FGSM, PGD, C&W; for a network with auxiliary heads also with p.

    Without p the attacker differentiates the final logits only; with p it ascends the combined
    objective of the training. In both, the final logits decide.
    """
    natural = AttackSpec(
        name="natural",
        objective="",
        norm=config.norm,
        epsilon=config.epsilon,
        step_size=0.0,
        num_steps=0,
        random_start=False,
        aux_weight=0.0,
    )
    steps = config.num_steps
    fgsm = replace(
        natural, name="fgsm", objective="cross_entropy", step_size=config.epsilon, num_steps=1
    )
    pgd = replace(
        fgsm,
        name=f"pgd{steps}",
        step_size=config.step_size,
        num_steps=steps,
        random_start=True,
    )
    cw = replace(pgd, name=f"cw{steps}", objective="margin")
    without_p = [fgsm, pgd, cw]
    if not has_aux_heads:
        return [natural, *without_p]
    with_p = [
        replace(spec, name=f"{spec.name}_with_p", aux_weight=aux_weight) for spec in without_p
    ]
    return [natural, *without_p, *with_p]


def run(
    spec: AttackSpec,
    target: Target,
    identity: dict[str, Any],
    store: ResultStore,
    bar: Bar,
) -> None:
    """Attacks the first examples of the test split and writes the result.

    Interrupted, it continues from the batches that are done; the numbers do not depend on that, nor
    on the batch size, since all randomness derives from the seed and the examples' indices.

    Args:
      spec: the attack.
      target: what is attacked.
      identity: what determines the numbers; see ``ResultStore``.
      store: where the result goes.
      bar: is told the number of examples done.
    """
    num_examples, size = identity["num_examples"], target.batch_size
    partial = store.partial_path(identity)
    arrays = {
        "predictions": np.full(num_examples, -1, np.int32),
        "norms": np.zeros(num_examples, np.float32),
    }
    if partial.exists():
        arrays = _read_partial(partial, arrays)
    threat_model = attacks.threat_model(spec.norm, spec.epsilon)
    key = jax.random.key(identity["seed"])
    started = saved = time.monotonic()
    for position, (batch, mask) in enumerate(
        batches_for_evaluation(target.split, size, num_examples, target.sharding)
    ):
        rows = slice(position * size, min((position + 1) * size, num_examples))
        if (arrays["predictions"][rows] >= 0).all():
            continue
        adversarial = _attack(spec, target.predict, batch, threat_model, key)
        predictions, norms = _judge(target.predict, adversarial, batch.images, threat_model)
        count = int(mask.sum())
        arrays["predictions"][rows] = np.asarray(predictions)[:count]
        arrays["norms"][rows] = np.asarray(norms)[:count]
        bar.update(rows.stop)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            write_arrays(partial, arrays)
            saved = time.monotonic()
    labels = target.split.labels[:num_examples]
    correct = arrays["predictions"] == labels
    seconds = time.monotonic() - started
    store.write(identity, arrays | {"labels": labels, "correct": correct}, seconds)
    partial.unlink(missing_ok=True)


def _read_partial(path, expected):
    """The arrays of an interrupted attack."""
    arrays = read_arrays(path, list(expected))
    for name, array in expected.items():
        if arrays[name].shape != array.shape or arrays[name].dtype != array.dtype:
            raise UsageError(f"{path}: is damaged; delete it to begin this attack again")
    return arrays


def _attack(spec, predict, batch, threat_model, key):
    if not spec.num_steps:
        return batch.images
    objective = _OBJECTIVES[spec.objective](predict, batch.labels, aux_weight=spec.aux_weight)
    start = batch.images
    if spec.random_start:
        start = threat_model.random_start(example_keys(key, batch.indices), batch.images)
    return attacks.ascend(
        objective,
        start,
        batch.images,
        threat_model,
        step_size=spec.step_size,
        num_steps=spec.num_steps,
    )


@jax.jit
def _judge(predict, adversarial, images, threat_model):
    predictions = jax.numpy.argmax(predict(adversarial).logits, axis=-1)
    return predictions, threat_model.norm(adversarial - images)
