"""The adaptive attacks as a part of the evaluation of a work directory."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

import ancra_jax.defences  # noqa: F401  (registers what the networks declare)
from ancra_jax.attacks import Defence, adaptive
from ancra_jax.attacks.adaptive.surrogates import Level
from ancra_jax.attacks.placement import Placement
from ancra_jax.cli.progress import Bar
from ancra_jax.evaluate.target import Target, arrays_of, first_examples, shown_on
from ancra_jax.results.store import ResultStore

NAME = "adaptive"


@dataclass(frozen=True)
class Source:
    """Another network, whose adversarial images are tried.

    Attributes:
      name: base name of its work directory.
      method: that trained it.
      step: of its checkpoint.
      predict: its inference with variables bound.
    """

    name: str
    method: str
    step: int
    predict: Callable[..., Any]


@dataclass(frozen=True)
class AdaptiveSpec:
    """The attacks that a network's defences declare, and transfer from other networks.

    Attributes:
      name: file name of the result.
      norm: ``'linf'`` or ``'l2'``.
      epsilon: radius of the ball, on the [0, 1] pixel scale.
      budget: ``'quick'``, ``'standard'`` or ``'thorough'``.
      max_minutes: stop after so many; 0: no limit. It decides no number of a complete result.
      defences: what the network declares.
      sources: networks to transfer from.
    """

    name: str
    norm: str
    epsilon: float
    budget: Level
    max_minutes: float
    defences: Sequence[Defence]
    sources: Sequence[Source]

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

    def run(self, target: Target, identity: dict[str, Any], store: ResultStore, bar: Bar) -> None:
        """Attacks the first examples of the test split and writes the result.

        Interrupted or stopped by ``max_minutes``, it continues after the last finished batch, with
        identical numbers.

        Args:
          target: what is attacked.
          identity: what determines the numbers; see ``ResultStore``.
          store: where the result goes.
          bar: is told where the evaluation stands.
        """
        images, labels = first_examples(target, identity)
        state = store.partial_path(identity).with_suffix(".state")
        started = time.monotonic()
        result = adaptive(
            target.predict,
            images,
            labels,
            epsilon=self.epsilon,
            norm=self.norm,
            defences=self.defences,
            transfer_from={source.name: source.predict for source in self.sources},
            budget=self.budget,
            key=jax.random.key(identity["seed"]),
            batch_size=target.compacted_batch_size,
            state_path=state,
            max_seconds=60 * self.max_minutes or None,
            progress=shown_on(bar),
        )
        gate = None
        if result.complete:
            broken = ~result.robust & (result.broken_by != "clean")
            placement = Placement.over(jax.devices(), target.batch_size, len(images))
            for defence in self.defences:
                if defence.gate is not None:
                    gate = defence.gate(images, result.images, labels, broken, placement)
        store.write(
            identity,
            arrays_of(result, labels),
            time.monotonic() - started,
            complete=result.complete,
            attacks=[record._asdict() for record in result.records],
            accuracy_after=result.accuracies,
            gate=gate,
            warnings=self._warnings() + result.warnings,
        )
        if result.complete:
            shutil.rmtree(state, ignore_errors=True)

    def _warnings(self) -> list[str]:
        if any(defence.attacks for defence in self.defences):
            return []
        by = " and ".join(["Square", *(["transfer"] if self.sources else [])])
        return [
            f"the network declares no surrogate: it was attacked by {by}; AutoAttack is the "
            "measure of a network that hides no gradient"
        ]
