"""AutoAttack and the adaptive attacks as parts of the evaluation of a work directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ancra_jax.attacks import AutoAttackResult, Defence, adaptive
from ancra_jax.attacks.adaptive.surrogates import Level
from ancra_jax.attacks.autoattack.api import autoattack
from ancra_jax.attacks.job import Placement
from ancra_jax.evaluate.spec import Arrays, Model, Spec, Task


@dataclass(frozen=True)
class AutoAttackSpec(Spec):
    """AutoAttack on the final logits."""

    version: str  # see ``ancra_jax.attacks.autoattack``

    def run(self, task: Task) -> tuple[Arrays, dict[str, Any]]:
        """Attack the examples of a task."""
        result = autoattack(**task.options, version=self.version)
        more = {"accuracy_after": result.accuracies, "warnings": result.warnings}
        return _arrays(task, result), more


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
        """Attack the examples of a task.

        Stopped by ``max_minutes``, the result says ``"complete": false``, and the attacks continue
        after the last finished batch.
        """
        result = adaptive(
            **task.options,
            defences=self.defences,
            transfer_from={source.name: source.model for source in self.sources},
            budget=self.budget,
            max_seconds=60 * self.max_minutes or None,
        )
        warnings = result.warnings
        if not any(defence.attacks for defence in self.defences):
            by = "Square and transfer" if self.sources else "Square"
            warning = (
                f"the network declares no surrogate: it was attacked by {by}; AutoAttack is the "
                "measure of a network that hides no gradient"
            )
            warnings = [warning, *warnings]
        more = {
            "complete": result.complete,
            "attacks": [record._asdict() for record in result.records],
            "accuracy_after": result.accuracies,
            "gate": self._masks(task, result) if result.complete else None,
            "warnings": warnings,
        }
        return _arrays(task, result), more

    def _masks(self, task: Task, result: AutoAttackResult) -> dict[str, Any] | None:
        """Return what a defence says of its part that passes no gradient; None without such."""
        broken = ~result.robust & (result.broken_by != "clean")
        placement = Placement.over(jax.devices(), task.target.batch_size, len(broken))
        masks = [
            defence.statistics(task.images, result.images, task.labels, broken, placement)
            for defence in self.defences
            if defence.statistics is not None
        ]
        return masks[-1] if masks else None


def _arrays(task: Task, result: AutoAttackResult) -> Arrays:
    """Return what is kept of every example under a sequence of attacks."""
    return {
        "labels": task.labels,
        "correct": result.robust,
        "broken_by": result.broken_by.astype(str),
        "target": result.target,
        "norms": result.norms,
        "queries": result.queries,
    }
