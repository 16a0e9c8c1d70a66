"""The diagnostics as a part of the evaluation of a work directory."""

import shutil
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from ancra_jax.attacks.diagnostics.api import Diagnosis, diagnose
from ancra_jax.attacks.diagnostics.checks import PARTS, TRANSFER, WHITE_BOX
from ancra_jax.attacks.types import Progress
from ancra_jax.cli.progress import Bar
from ancra_jax.config.schema import EvaluationConfig
from ancra_jax.evaluate.target import Target
from ancra_jax.results.diagnosis import NAME, rows_in
from ancra_jax.results.store import ResultStore, read_result
from ancra_jax.run.files import read_arrays

_SAME = ("checkpoint", "step", "data_fingerprint")


@dataclass(frozen=True)
class DiagnosticsSpec:
    """The diagnostics of a network under a threat model.

    Attributes:
      norm: ``'linf'`` or ``'l2'``.
      epsilon: radius of the ball, on the [0, 1] pixel scale.
      num_steps: gradient steps of APGD.
      name: file name of the result.
    """

    norm: str
    epsilon: float
    num_steps: int = 100
    name: str = NAME

    @property
    def settings(self) -> dict[str, Any]:
        """All but the name, as the result file keeps them."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    def run(self, target: Target, identity: dict[str, Any], store: ResultStore, bar: Bar) -> None:
        """Diagnoses the network on the first examples of the test split and writes the result.

        Attacks whose results are in the store already are compared with each other. Interrupted, it
        continues after the last finished measurement.

        Args:
          target: the network.
          identity: what determines the numbers; see ``ResultStore``.
          store: where the results of attacks are and this one goes.
          bar: is told where the diagnosis stands.
        """
        count = identity["num_examples"]
        state = store.partial_path(identity).with_suffix(".state")
        results = results_in(store, identity)

        def show(progress: Progress):
            bar.update(
                progress.round,
                f"{progress.attack}, robust accuracy {progress.robust_accuracy:.2%}",
                total=progress.rounds,
            )

        started = time.monotonic()
        found = diagnose(
            target.predict,
            target.split.images[:count].astype(np.float32) / np.float32(255),
            target.split.labels[:count],
            epsilon=self.epsilon,
            norm=self.norm,
            results=results,
            key=jax.random.key(identity["seed"]),
            batch_size=target.batch_size,
            num_steps=self.num_steps,
            state_path=state,
            progress=show,
        )
        store.write_record(
            identity,
            {
                "landscape_offsets": found.landscape_offsets,
                "landscape_losses": found.landscape_losses,
                "curve_correct": found.correct_at,
            },
            time.monotonic() - started,
            **content(found),
            compared_with=sorted(results.keys() - set(PARTS)),
        )
        shutil.rmtree(state, ignore_errors=True)


def spec(config: EvaluationConfig) -> DiagnosticsSpec:
    """The diagnostics under the configured threat model."""
    return DiagnosticsSpec(config.norm, config.epsilon)


def content(found: Diagnosis) -> dict[str, Any]:
    """What the JSON file says of a diagnosis."""
    return {
        "verdict": found.verdict,
        "clean_accuracy": found.clean_accuracy,
        "rows": [asdict(row) for row in found.rows],
        "epsilon_curve": {
            "attack": "APGD on the cross-entropy, Linf, 20 steps",
            "epsilons": found.epsilons.tolist(),
            "accuracy": found.accuracies.tolist(),
        },
    }


def results_in(store: ResultStore, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Which examples stayed correct under the attacks in the store that saw the same examples.

    Args:
      store: of the checkpoint.
      record: the identity of the diagnosis, or its result.

    Returns:
      What ``attacks.diagnose`` takes as ``results``.

    Raises:
      UsageError: a result is damaged.
    """
    count = record["num_examples"]
    results: dict[str, np.ndarray] = {}
    for path in sorted(store.directory.glob("*.json")):
        if path.stem == NAME or not _comparable(read_result(path), record):
            continue
        arrays = read_arrays(path.with_suffix(".npz"), ["correct"])
        correct = arrays["correct"][:count]
        broken_by = arrays.get("broken_by", np.full(count, ""))[:count]
        for name, flags in _parts(path.stem, correct, broken_by).items():
            results[name] = results.get(name, True) & flags
        results[path.stem] = correct
    return results


def _comparable(one: dict[str, Any], record: dict[str, Any]) -> bool:
    same = all(one.get(name) == record[name] for name in _SAME)
    settings, asked = one["settings"], record["settings"]
    return (
        same
        and one["num_examples"] >= record["num_examples"]
        and all(settings.get(name) == asked[name] for name in ("norm", "epsilon"))
    )


def _parts(name, correct, broken_by):
    """What followed the gradient of the network's own output, and what did not."""
    if name == "natural":
        return {}
    if name.endswith("_with_p"):
        return {TRANSFER: correct}
    if name == "adaptive":
        # Warm starts go on along the gradient of the output itself unless a defence says otherwise.
        return {TRANSFER: correct | np.char.startswith(broken_by, "warm-")}
    by_square = broken_by == "square"
    return {WHITE_BOX: correct | by_square, TRANSFER: ~by_square}


def not_compared(store: ResultStore, record: dict[str, Any]) -> list[str]:
    """The attacks in the store that were not there when the diagnosis was made."""
    return sorted(results_in(store, record).keys() - {*record["compared_with"], *PARTS})


def table_rows(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, value, threshold and finding of every row, as text."""
    lines: list[tuple[str, str, str, str]] = []
    for row in rows_in(record):
        value = "" if row.value is None else f"{row.value:.4g}"
        finding = "not run" if row.fired is None else row.severity if row.fired else "passed"
        lines.append((row.name, value, f"> {row.threshold:.4g}", finding))
    return lines
