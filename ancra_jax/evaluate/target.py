"""What an evaluation attacks, and what it keeps of every example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ancra_jax.attacks import AutoAttackResult
from ancra_jax.attacks.placement import default_batch_size
from ancra_jax.attacks.types import Progress
from ancra_jax.cli.progress import Bar, format_seconds
from ancra_jax.data import Split
from ancra_jax.types import Outputs


class Target(NamedTuple):
    """What an evaluation attacks.

    Attributes:
      predict: the network in the evaluation phase, with a checkpoint's variables; a pytree.
      split: the test split, on the host.
      batch_size: examples on the devices at a time, a multiple of the number of devices.
      sharding: of a batch over the devices.
    """

    predict: Callable[..., Outputs]
    split: Split
    batch_size: int
    sharding: jax.sharding.Sharding

    @property
    def compacted_batch_size(self) -> int:
        """Of attacks that put what is still robust together anew: there padding is to be small."""
        return min(self.batch_size, default_batch_size())


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
