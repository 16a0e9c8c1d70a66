"""What runs left on disk: their curves, and their evaluations example by example."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool

from ancra_jax.config.schema import WEIGHTS, Config
from ancra_jax.errors import UsageError
from ancra_jax.results.commands import evaluate_command
from ancra_jax.results.diagnosis import NAME, StoredDiagnosis, load_diagnosis
from ancra_jax.results.labels import labels_of
from ancra_jax.results.names import NATURAL, attack_order, display_name
from ancra_jax.results.store import evaluation_name, read_result
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.files import read_arrays, read_json_lines

CHECKPOINTS = tuple(
    evaluation_name(checkpoint, weights) for weights in WEIGHTS for checkpoint in ("best", "last")
)
_TARGET = ("step", "data_fingerprint")
_FIELDS: dict[str, Any] = dict.fromkeys(("attack", "data", "data_fingerprint"), str)
_FIELDS |= dict.fromkeys(("step", "num_examples", "seed"), int)
_FIELDS |= {"accuracy": int | float, "settings": dict}


@dataclass(frozen=True)
class StoredResult:
    """One attack on one checkpoint."""

    record: dict[str, Any]  # the content of its JSON file
    arrays: dict[str, np.ndarray]  # what is kept of each of the first examples of the test split

    @property
    def correct(self) -> Bool[np.ndarray, "examples"]:
        """Whether the final logits are right, of each example."""
        return self.arrays["correct"]


@dataclass(frozen=True)
class Evaluation:
    """The attacks on one checkpoint that can be looked at together."""

    checkpoint: str  # 'best', 'last', or of an average ('best_ema')
    # By the attack's name, in the order of ``names.attack_order``.
    results: dict[str, StoredResult] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what was left out, and why
    diagnosis: StoredDiagnosis | None = None  # of the same checkpoint

    @property
    def correct(self) -> dict[str, Bool[np.ndarray, "_"]]:
        """Whether each example is right, by the attack's name."""
        return {name: result.correct for name, result in self.results.items()}


@dataclass(frozen=True)
class Run:
    """A work directory."""

    workdir: str  # as the user wrote it
    config: Config  # of the training
    label: str  # the method, with the settings in which runs of that method differ
    curves: tuple[dict[str, Any], ...]  # the records of ``metrics.jsonl``
    evaluations: tuple[Evaluation, ...]  # in the order of ``CHECKPOINTS``, where there are any


def load_runs(workdirs: Sequence[str]) -> list[Run]:
    """Read work directories.

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
    configs = [_read_config(workdir) for workdir in workdirs]
    runs = []
    for workdir, config, label in zip(workdirs, configs, labels_of(configs), strict=True):
        found = [load_evaluation(workdir, checkpoint) for checkpoint in CHECKPOINTS]
        evaluations = tuple(one for one in found if one.results or one.diagnosis)
        runs.append(Run(workdir, config, label, _load_curves(workdir), evaluations))
    if not any(run.curves or run.evaluations for run in runs):
        raise UsageError(
            "--workdirs: neither training metrics nor an evaluation in "
            f"{', '.join(workdirs)}; run python -m ancra_jax.train, then ancra_jax.evaluate"
        )
    return runs


def load_evaluation(workdir: str, checkpoint: str) -> Evaluation:
    """Read the results of a checkpoint; an empty evaluation where there are none.

    Results that belong to another state of the run than the natural accuracy cannot be put beside
    it and are left out: they are of the best checkpoint of a run that went on, or of other data.

    Args:
      workdir: of the run.
      checkpoint: an ``evaluation_name``.

    Raises:
      UsageError: a file is damaged.
    """
    directory = pathlib.Path(workdir) / "evaluation" / checkpoint
    results = load_results(directory)
    diagnosis = load_diagnosis(directory)
    if not results:
        return Evaluation(checkpoint, diagnosis=diagnosis)
    found = [one.record for one in results.values()]
    newest = max(found, key=lambda record: record["step"])
    reference = results[NATURAL].record if NATURAL in results else newest
    belonging = {name: one for name, one in results.items() if same_target(one.record, reference)}
    command = evaluate_command(workdir, checkpoint)
    notes = [
        f"{display_name(name)} is of another checkpoint, epsilon or data set (step "
        f"{one.record['step']}) and left out; {command} --force computes it again"
        for name, one in results.items()
        if name not in belonging
    ]
    if diagnosis and any(getattr(diagnosis, name) != reference[name] for name in _TARGET):
        diagnosis = None
        notes.append(
            "the diagnosis is of another checkpoint or data set and left out; "
            f"{command} --suite=diagnostics --force makes it again"
        )
    return Evaluation(checkpoint, belonging, tuple(notes), diagnosis)


def load_results(directory: pathlib.Path) -> dict[str, StoredResult]:
    """Read the results of all attacks in a directory, whatever they belong to.

    Raises:
      UsageError: a file is damaged.
    """
    names = [path.stem for path in directory.glob("*.json") if path.stem != NAME]
    return {
        name: _load_result(directory / f"{name}.json") for name in sorted(names, key=attack_order)
    }


def same_target(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two results are of one checkpoint, data set, norm and epsilon.

    Args:
      one: the JSON of a result; norm and epsilon may be missing in its settings.
      other: the JSON of another.
    """
    settings = other["settings"]
    return all(one[name] == other[name] for name in _TARGET) and all(
        one["settings"].get(name, settings[name]) == settings[name]
        for name in ("norm", "epsilon")
        if settings.get(name) is not None
    )


def _read_config(workdir: str) -> Config:
    try:
        return workdir_lib.read_config(workdir)
    except UsageError as error:
        message = str(error)
        file = f"{pathlib.Path(workdir) / 'config.json'}"
        raise UsageError(message if workdir in message else f"{file}: {message}") from error


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


def _load_result(path: pathlib.Path) -> StoredResult:
    record = read_result(path)
    arrays_path = path.with_suffix(".npz")
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise UsageError(f"{path}: {name}={record.get(name)!r} is not what a result holds")
    if record["attack"] != path.stem:
        raise UsageError(f"{path}: holds the attack {record['attack']!r}")
    arrays = read_arrays(arrays_path, ["correct"])
    correct = arrays["correct"]
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
    return StoredResult(record, arrays)
