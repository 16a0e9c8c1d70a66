"""AutoAttack as a part of the evaluation of a work directory."""

from dataclasses import dataclass
from typing import Any

from ancra_jax.attacks.autoattack.api import autoattack
from ancra_jax.evaluate.spec import Arrays, Spec, Task


@dataclass(frozen=True)
class AutoAttackSpec(Spec):
    """AutoAttack on the final logits."""

    version: str  # see ``ancra_jax.attacks.autoattack``

    def run(self, task: Task) -> tuple[Arrays, dict[str, Any]]:
        """Attack the examples of a task; see ``Spec``."""
        result = autoattack(
            task.target.model,
            task.images,
            task.labels,
            epsilon=self.epsilon,
            norm=self.norm,
            version=self.version,
            key=task.key,
            batch_size=task.batch_size_of_the_rest,
            state_path=task.state,
            progress=task.show,
        )
        return task.kept(result), {
            "accuracy_after": result.accuracies,
            "warnings": result.warnings,
        }
