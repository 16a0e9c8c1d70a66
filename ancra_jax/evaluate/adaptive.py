"""The adaptive attacks as a part of the evaluation of a work directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ancra_jax.attacks import Defence, adaptive
from ancra_jax.attacks.adaptive.surrogates import Level
from ancra_jax.attacks.placement import Placement
from ancra_jax.evaluate.spec import Arrays, Model, Spec, Task


@dataclass(frozen=True)
class Source:
    """Another network, whose adversarial images are tried."""

    name: str  # base name of its work directory
    method: str  # that trained it
    step: int  # of its checkpoint
    model: Model


@dataclass(frozen=True)
class AdaptiveSpec(Spec):
    """The attacks that a network's defences declare, and transfer from other networks."""

    budget: Level
    max_minutes: float  # stop after so many; 0: no limit. It decides no number of a complete result
    defences: Sequence[Defence]  # that the network declares
    sources: Sequence[Source]  # networks to transfer from

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the numbers, as the result file keeps it."""
        return {
            "norm": self.norm,
            "epsilon": self.epsilon,
            "budget": self.budget,
            "defences": [defence.name for defence in self.defences],
            "transfer_from": [
                {"name": source.name, "method": source.method, "step": source.step}
                for source in self.sources
            ],
        }

    def run(self, task: Task) -> tuple[Arrays, dict[str, Any]]:
        """Attack the examples of a task; see ``Spec``.

        Stopped by ``max_minutes``, the result says ``"complete": false``, and the attacks continue
        after the last finished batch.
        """
        images, labels = task.images, task.labels
        result = adaptive(
            task.target.model,
            images,
            labels,
            epsilon=self.epsilon,
            norm=self.norm,
            defences=self.defences,
            transfer_from={source.name: source.model for source in self.sources},
            budget=self.budget,
            key=task.key,
            batch_size=task.batch_size_of_the_rest,
            state_path=task.state,
            max_seconds=60 * self.max_minutes or None,
            progress=task.show,
        )
        masks = None
        if result.complete:
            broken = ~result.robust & (result.broken_by != "clean")
            placement = Placement.over(jax.devices(), task.target.batch_size, len(images))
            for defence in self.defences:
                if defence.statistics is not None:
                    masks = defence.statistics(images, result.images, labels, broken, placement)
        return task.kept(result), {
            "complete": result.complete,
            "attacks": [record._asdict() for record in result.records],
            "accuracy_after": result.accuracies,
            "gate": masks,
            "warnings": self._warnings() + result.warnings,
        }

    def _warnings(self) -> list[str]:
        if any(defence.attacks for defence in self.defences):
            return []
        by = "Square and transfer" if self.sources else "Square"
        return [
            f"the network declares no surrogate: it was attacked by {by}; AutoAttack is the "
            "measure of a network that hides no gradient"
        ]
