"""The diagnostics as a part of the evaluation of a work directory."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ancra_jax.attacks.diagnostics.api import diagnose
from ancra_jax.attacks.diagnostics.checks import PARTS, TRANSFER, WHITE_BOX, Flags
from ancra_jax.attacks.job import Progress
from ancra_jax.evaluate.spec import Arrays, Spec, Task
from ancra_jax.results.load import load_results, same_target
from ancra_jax.results.names import ADAPTIVE, NATURAL, parse


@dataclass(frozen=True)
class DiagnosticsSpec(Spec):
    """The diagnostics of a network under a threat model."""

    num_steps: int = 100  # gradient steps of APGD

    def run(self, task: Task) -> tuple[Arrays, dict[str, Any]]:
        """Diagnose the network on the examples of a task.

        Attacks whose results are there already are compared with each other. Interrupted, it
        continues after the last finished measurement.
        """

        def show(progress: Progress) -> None:
            text = f"{progress.attack}, robust accuracy {progress.robust_accuracy:.2%}"
            task.bar.update(progress.round, text, total=progress.rounds)

        results = _earlier_results(task)
        found = diagnose(
            **task.options | {"batch_size": task.target.batch_size, "progress": show},
            results=results,
            num_steps=self.num_steps,
        )
        arrays = {
            "landscape_offsets": found.landscape_offsets,
            "landscape_losses": found.landscape_losses,
            "curve_correct": found.correct_at,
        }
        return arrays, {
            "verdict": found.verdict,
            "clean_accuracy": found.clean_accuracy,
            "rows": [asdict(row) for row in found.checks],
            "epsilon_curve": {
                "attack": "APGD on the cross-entropy, Linf, 20 steps",
                "epsilons": found.epsilons.tolist(),
                "accuracy": found.accuracies.tolist(),
            },
            "compared_with": sorted(results.keys() - set(PARTS)),
        }


def _earlier_results(task: Task) -> dict[str, Flags]:
    """Return which examples stayed correct under attacks that saw the same ones before.

    This is what ``attacks.diagnose`` takes as ``results``.
    """
    count = len(task.labels)
    results: dict[str, Flags] = {}
    for name, one in sorted(load_results(task.partial.parent).items()):
        if len(one.correct) < count or not same_target(one.record, task.identity):
            continue
        correct = one.correct[:count]
        results[name] = correct
        broken_by = one.arrays.get("broken_by", np.full(count, ""))[:count]
        for part, flags in _parts(name, correct, broken_by).items():
            results[part] = results.get(part, True) & flags
    return results


def _parts(name: str, correct: Flags, broken_by: np.ndarray) -> dict[str, Flags]:
    """Return what followed the gradient of the network's own output, and what did not."""
    if name == NATURAL:
        return {}
    if parse(name).heads:
        return {TRANSFER: correct}
    if name == ADAPTIVE:
        # Warm starts go on along the gradient of the output itself unless a defence says otherwise.
        return {TRANSFER: correct | np.char.startswith(broken_by, "warm-")}
    by_square = broken_by == "square"
    return {WHITE_BOX: correct | by_square, TRANSFER: ~by_square}
