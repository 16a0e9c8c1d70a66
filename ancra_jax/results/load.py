"""What a report reads: the runs, their curves, and their evaluations example by example."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from ancra_jax.config.schema import WEIGHTS, Config, to_mapping
from ancra_jax.errors import UsageError
from ancra_jax.results.diagnosis import FILE, ReportedDiagnosis, load_diagnosis
from ancra_jax.results.names import NATURAL, display_name, evaluate_command
from ancra_jax.results.statistics import fooled_attacks
from ancra_jax.results.store import evaluation_name, read_result
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.files import read_arrays, read_json_lines

CHECKPOINTS = tuple(
    evaluation_name(checkpoint, weights) for weights in WEIGHTS for checkpoint in ("best", "last")
)
MAX_SETTINGS_IN_LABEL = 3
_FIELDS: dict[str, Any] = {
    "attack": str,
    "step": int,
    "num_examples": int,
    "accuracy": int | float,
    "data": str,
    "seed": int,
    "settings": dict,
    "data_fingerprint": str,
}


@dataclass(frozen=True)
class AttackResult:
    """One attack on one checkpoint.

    Attributes:
      record: the content of its JSON file.
      correct: whether the final logits are right, of the first examples of the test split.
    """

    record: dict[str, Any]
    correct: Bool[np.ndarray, "examples"]


@dataclass(frozen=True)
class Evaluation:
    """The attacks on one checkpoint of a run that can be looked at together.

    Attributes:
      checkpoint: ``'best'``, ``'last'``, or of an average (``'best_ema'``).
      results: by the attack's name.
      notes: what was left out, and why.
      diagnosis: of the same checkpoint, if there is one.
    """

    checkpoint: str
    results: dict[str, AttackResult]
    notes: tuple[str, ...]
    diagnosis: ReportedDiagnosis | None = None

    @property
    def attacks(self) -> list[str]:
        """The names, without the natural images."""
        return [name for name in self.results if name != NATURAL]

    @property
    def num_examples(self) -> int:
        """The number of first test examples that every attack saw."""
        return min((len(result.correct) for result in self.results.values()), default=0)

    def survivors(self) -> Bool[np.ndarray, "examples"] | None:
        """Which examples are right on the natural image and under every attack.

        None where the natural images or the attacks are missing.
        """
        if NATURAL not in self.results or not self.attacks:
            return None
        count = self.num_examples
        return np.logical_and.reduce([one.correct[:count] for one in self.results.values()])

    def accuracy_under_all(self, attacks: Sequence[str]) -> float | None:
        """The share of examples that none of these attacks breaks; None without attacks."""
        if not attacks:
            return None
        arrays = [self.results[name].correct[: self.num_examples] for name in attacks]
        return float(np.logical_and.reduce(arrays).mean())

    def fooled_attacks(self) -> dict[str, str]:
        """A warning for each attack that leaves more than the natural accuracy of its examples."""
        warnings = {}
        for name in self.attacks if NATURAL in self.results else []:
            correct, natural = self.results[name].correct, self.results[NATURAL].correct
            count = min(len(correct), len(natural))
            accuracy = {NATURAL: natural[:count].mean(), name: correct[:count].mean()}
            warnings[name] = " ".join(fooled_attacks(accuracy))
        return {name: warning for name, warning in warnings.items() if warning}


@dataclass(frozen=True)
class Run:
    """A work directory.

    Attributes:
      workdir: as the user wrote it.
      config: of the training.
      label: the method, with the settings in which runs of that method differ.
      curves: the records of ``metrics.jsonl``.
      evaluations: of the best, then of the last checkpoint, where there are any; then those of
        averaged weights.
    """

    workdir: str
    config: Config
    label: str
    curves: tuple[dict[str, Any], ...]
    evaluations: tuple[Evaluation, ...]


def load_runs(workdirs: Sequence[str]) -> list[Run]:
    """Reads the work directories.

    Raises:
      UsageError: one holds no run or appears twice, a file is damaged, or there is neither a curve
        nor an evaluation in any of them.
    """
    paths = [pathlib.Path(workdir).resolve() for workdir in workdirs]
    for position, path in enumerate(paths):
        if not path.is_dir():
            raise UsageError(f"--workdirs: there is no directory {workdirs[position]!r}")
        if path in paths[:position]:
            raise UsageError(f"--workdirs: {workdirs[position]} is there twice")
    runs = [_load_run(workdir) for workdir in workdirs]
    if not any(run.curves or run.evaluations for run in runs):
        raise UsageError(
            "--workdirs: neither training metrics nor an evaluation in "
            f"{', '.join(workdirs)}; run python -m ancra_jax.train, then ancra_jax.evaluate"
        )
    labels = _labels([run.config for run in runs])
    return [dataclasses.replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def method_settings(config: Config) -> dict[str, Any]:
    """The settings that make a method: neither the seed nor what changes no number."""
    free = workdir_lib.FREE_SETTINGS - {"max_steps"} | {"seed"}
    flat: dict[str, Any] = {}
    for name, value in to_mapping(config).items():
        values = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name}.{key}".rstrip("."): value for key, value in values}
    return {name: value for name, value in flat.items() if name not in free}


def _load_run(workdir: str) -> Run:
    try:
        config = workdir_lib.read_config(workdir)
    except UsageError as error:
        message = str(error)
        file = f"{pathlib.Path(workdir) / 'config.json'}"
        raise UsageError(message if workdir in message else f"{file}: {message}") from error
    evaluations = [
        evaluation
        for checkpoint in CHECKPOINTS
        if (evaluation := _load_evaluation(workdir, checkpoint)) is not None
    ]
    return Run(workdir, config, config.name, _load_curves(workdir), tuple(evaluations))


def _load_curves(workdir: str) -> tuple[dict[str, Any], ...]:
    path = pathlib.Path(workdir) / "metrics.jsonl"
    try:
        records = read_json_lines(path)
        num_lines = len(path.read_text().splitlines()) if path.exists() else 0
        curves = [record for record in records if record["kind"] in ("train", "selection")]
        valid = all(
            isinstance(value, int | float)
            for record in curves
            for name, value in ({"epoch": None, "step": None} | record).items()
            if name != "kind"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: is not a file of training metrics: {error!r}") from error
    # A killed run leaves at most its last line unfinished.
    if not valid or len(records) < num_lines - 1:
        raise UsageError(f"{path}: is damaged: it holds lines that are no records of training")
    return tuple(curves)


def _load_evaluation(workdir: str, checkpoint: str) -> Evaluation | None:
    directory = pathlib.Path(workdir) / "evaluation" / checkpoint
    files = [path for path in sorted(directory.glob("*.json")) if path.name != FILE]
    results = {path.stem: _load_result(path) for path in files}
    diagnosis = load_diagnosis(directory)
    if not results:
        return Evaluation(checkpoint, {}, (), diagnosis) if diagnosis else None
    # Results that belong to another state of the run than the natural accuracy cannot be put
    # beside it: the best checkpoint of a run that went on, or data that changed.
    reference = results.get(NATURAL) or max(results.values(), key=lambda one: one.record["step"])
    belonging = {name: one for name, one in results.items() if _identity(one, reference)}
    notes = tuple(
        f"{workdir}, {checkpoint}: {display_name(name)} is of another checkpoint, epsilon or data "
        f"set (step {one.record['step']}) and left out; {evaluate_command(workdir, checkpoint)} "
        "--force computes it again"
        for name, one in results.items()
        if name not in belonging
    )
    if diagnosis is not None and (diagnosis.step, diagnosis.data_fingerprint) != (
        reference.record["step"],
        reference.record["data_fingerprint"],
    ):
        diagnosis = None
        command = f"{evaluate_command(workdir, checkpoint)} --suite=diagnostics --force"
        notes += (
            f"{workdir}, {checkpoint}: the diagnosis is of another checkpoint or data set and left "
            f"out; {command} makes it again",
        )
    return Evaluation(checkpoint, belonging, notes, diagnosis)


def _identity(one: AttackResult, other: AttackResult) -> bool:
    first, second = one.record, other.record
    settings = ("norm", "epsilon")
    return all(first[name] == second[name] for name in ("step", "data_fingerprint")) and all(
        first["settings"].get(name, value) == value
        for name in settings
        if (value := second["settings"].get(name)) is not None
    )


def _load_result(path: pathlib.Path) -> AttackResult:
    record = read_result(path)
    arrays_path = path.with_suffix(".npz")
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise UsageError(f"{path}: {name}={record.get(name)!r} is not what a result holds")
    if record["attack"] != path.stem:
        raise UsageError(f"{path}: holds the attack {record['attack']!r}")
    correct = read_arrays(arrays_path, ["correct"])["correct"]
    count = record["num_examples"]
    if correct.dtype != bool or correct.shape != (count,) or count < 1:
        raise UsageError(
            f"{arrays_path}: holds {correct.dtype} of shape {correct.shape}, "
            f"{path.name} says {count} examples"
        )
    if not math.isclose(correct.mean(), record["accuracy"], abs_tol=1e-6):
        raise UsageError(
            f"{arrays_path}: {correct.mean():.4%} of its examples are correct, {path.name} says "
            f"{record['accuracy']:.4%}: they are not of one evaluation"
        )
    return AttackResult(record, correct)


def _labels(configs: Sequence[Config]) -> list[str]:
    """The names of the methods; where one name has several settings, with those that differ."""
    labels = []
    for config in configs:
        namesakes = [other for other in configs if other.name == config.name]
        label = config.name
        if len({other.data.name for other in namesakes}) > 1:
            label += f" on {config.data.name}"
            namesakes = [other for other in namesakes if other.data.name == config.data.name]
        settings = [method_settings(other) for other in namesakes]
        differing = [
            f"{name.rpartition('.')[2]}={value}"
            for name, value in method_settings(config).items()
            if any(other[name] != value for other in settings)
        ]
        labels.append(", ".join([label, *differing[:MAX_SETTINGS_IN_LABEL]]))
    return labels
