"""AutoAttack as a part of the evaluation of a work directory."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from ancra_jax.attacks import AutoAttackResult
from ancra_jax.attacks.autoattack import autoattack
from ancra_jax.attacks.progress import Progress
from ancra_jax.config import EvaluationConfig
from ancra_jax.paper_suite import Target
from ancra_jax.progress import Bar, format_seconds
from ancra_jax.results import ResultStore


@dataclass(frozen=True)
class AutoAttackSpec:
    """AutoAttack on the final logits.

    Attributes:
      name: file name of the result.
      norm: ``'linf'`` or ``'l2'``.
      epsilon: radius of the ball, on the [0, 1] pixel scale.
      version: see ``ancra_jax.attacks.autoattack``.
    """

    name: str
    norm: str
    epsilon: float
    version: str

    @property
    def settings(self) -> dict[str, Any]:
        """All but the name, as the result file keeps them."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    def run(self, target: Target, identity: dict[str, Any], store: ResultStore, bar: Bar) -> None:
        """Attacks the first examples of the test split and writes the result.

        Interrupted, it continues after the last finished batch, with identical numbers.

        Args:
          target: what is attacked.
          identity: what determines the numbers; see ``ResultStore``.
          store: where the result goes.
          bar: is told where the evaluation stands.
        """
        images, labels = first_examples(target, identity)
        state = store.partial_path(identity).with_suffix(".state")
        started = time.monotonic()
        result = autoattack(
            target.predict,
            images,
            labels,
            epsilon=self.epsilon,
            norm=self.norm,
            version=self.version,
            key=jax.random.key(identity["seed"]),
            batch_size=target.compacted_batch_size,
            state_path=state,
            progress=shown_on(bar),
        )
        store.write(
            identity,
            arrays_of(result, labels),
            time.monotonic() - started,
            accuracy_after=result.accuracies,
            warnings=result.warnings,
        )
        shutil.rmtree(state, ignore_errors=True)


def first_examples(target: Target, identity: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1] and labels of the examples that an evaluation is about."""
    num_examples = identity["num_examples"]
    pixels = target.split.images[:num_examples]
    images = np.divide(pixels, np.float32(255), dtype=np.float32)
    return images, target.split.labels[:num_examples]


def shown_on(bar: Bar) -> Callable[[Progress], None]:
    """Tells a bar where an evaluation stands."""

    def show(progress: Progress):
        left = f", {format_seconds(progress.remaining)} left in all" if progress.remaining else ""
        bar.update(
            progress.done,
            f"{progress.attack} {progress.round}/{progress.rounds}, "
            f"robust accuracy {progress.robust_accuracy:.2%}{left}",
            total=progress.todo,
        )

    return show


def arrays_of(result: AutoAttackResult, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept of every example."""
    return {
        "labels": labels,
        "correct": result.robust,
        "broken_by": result.broken_by.astype(str),
        "target": result.target,
        "norms": result.norms,
        "queries": result.queries,
    }


def spec(config: EvaluationConfig, version: str) -> AutoAttackSpec:
    """AutoAttack under the configured threat model; ``'standard'`` is just called autoattack."""
    name = "autoattack" if version == "standard" else f"autoattack_{version}"
    return AutoAttackSpec(name, config.norm, config.epsilon, version)
