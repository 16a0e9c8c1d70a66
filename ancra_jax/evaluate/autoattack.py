"""AutoAttack as a part of the evaluation of a work directory."""

import shutil
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax

from ancra_jax.attacks.autoattack.api import autoattack
from ancra_jax.cli.progress import Bar
from ancra_jax.config.schema import EvaluationConfig
from ancra_jax.evaluate.target import Target, arrays_of, first_examples, shown_on
from ancra_jax.results.store import ResultStore


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


def spec(config: EvaluationConfig, version: str) -> AutoAttackSpec:
    """AutoAttack under the configured threat model; ``'standard'`` is just called autoattack."""
    name = "autoattack" if version == "standard" else f"autoattack_{version}"
    return AutoAttackSpec(name, config.norm, config.epsilon, version)
