"""A row of ``results/``: one evaluated checkpoint and all that made it, in one JSON file.

For every attack the file says of each example whether it was classified correctly, as bits. Every
number in it, and every comparison of two rows, can be computed again from those.
"""

import hashlib
import json
import pathlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from ancra_jax import config as config_lib
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.paper.recipes import recipe
from ancra_jax.results.load import Evaluation, Run, load_runs, method_settings
from ancra_jax.results.names import NATURAL
from ancra_jax.results.rows import Row, rows_of
from ancra_jax.results.statistics import wilson_interval
from ancra_jax.run import workdir as workdir_lib

SCHEMA = 1
NOTES = "notes.txt"
_ORIGIN = ("device", "commit", "versions")
_FIELDS: dict[str, type] = {
    "schema": int,
    "method": str,
    "data": str,
    "data_fingerprint": str,
    "network": str,
    "setting": str,
    "norm": str,
    "epsilon": float,
    "seed": int,
    "checkpoint": str,
    "step": int,
    "overrides": dict,
    "train": str,
    "evaluate": list,
    "training": list,
    "evaluation": dict,
    "notes": list,
    "attacks": dict,
    "adaptive": list,
    "diagnosis": dict,
    "worst_case": dict,
    "config": dict,
}
_ATTACK_FIELDS: dict[str, type] = {
    "num_examples": int,
    "num_correct": int,
    "accuracy": float,
    "seed": int,
    "settings": dict,
    "warnings": list,
    "correct": str,
}


@dataclass(frozen=True)
class Published:
    """A row that was checked.

    Attributes:
      record: the content of its file.
      correct: per attack, of the first examples of the test split.
    """

    record: dict[str, Any]
    correct: dict[str, Bool[np.ndarray, "examples"]]

    @property
    def num_examples(self) -> int:
        """The number of first test examples that every attack saw."""
        return min(map(len, self.correct.values()))

    def survivors(self) -> Bool[np.ndarray, "examples"]:
        """Which are right on the natural image and under every attack: the worst case."""
        count = self.num_examples
        return np.logical_and.reduce([correct[:count] for correct in self.correct.values()])


def records_of(workdirs: Sequence[str]) -> list[dict[str, Any]]:
    """One record for each evaluated checkpoint of the work directories.

    Raises:
      UsageError: one cannot be read, was not evaluated, or is of no recipe in ``configs/``.
    """
    runs = load_runs(workdirs)
    rows = {(row.workdir, row.checkpoint): row for row in rows_of(runs)}
    records = []
    for run in runs:
        if not run.evaluations:
            raise UsageError(f"--workdirs: {run.workdir} was not evaluated")
        for evaluation in run.evaluations:
            row = rows[run.workdir, evaluation.checkpoint]
            if row.worst_case is None:
                raise UsageError(
                    f"--workdirs: {run.workdir} ({evaluation.checkpoint}) has no worst case: the "
                    "natural images or the attacks are missing"
                )
            records.append(_record(run, evaluation, row))
    return records


def file_name(record: dict[str, Any]) -> str:
    """Where a record belongs; another name for every method, setting, seed and checkpoint."""
    config = config_lib.from_mapping(record["config"])
    settings = json.dumps(method_settings(config), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
    name = f"{config.data.name}-{config.name}-{digest}-seed{config.seed}-{record['checkpoint']}"
    return f"{''.join(c if c.isalnum() or c in '-_' else '_' for c in name)}.json"


def overrides_of(config: Config) -> dict[str, Any]:
    """What a run has set otherwise than its method's recipe in ``configs/``.

    Raises:
      UsageError: see ``recipe``.
    """
    base = config_lib.from_mapping(recipe(config.data.name, config.name.partition(" ")[0]))
    original = method_settings(base)
    settings = method_settings(config).items()
    return {name: value for name, value in settings if value != original[name]}


def setting(config: Config, overrides: dict[str, Any]) -> str:
    """In words, how a run differs from the paper's; empty if it does not."""
    if not overrides:
        return ""
    parts = [
        f"width {config.model.width}" if config.model.width else "",
        f"{config.data.train_examples:,} images" if config.data.train_examples else "",
        f"{config.epochs} epochs",
    ]
    return f"{', '.join(filter(None, parts))}: not the paper's setting"


def validate(record: Any, name: str) -> Published:
    """Checks a record: its fields, and that its numbers follow from its examples.

    Args:
      record: the content of a file.
      name: of the file.

    Raises:
      UsageError: something is missing, of another type, or does not follow.
    """
    _check_fields(record, _FIELDS, name)
    if record["schema"] != SCHEMA:
        raise UsageError(f"{name}: has schema {record['schema']}, this version reads {SCHEMA}")
    config = config_lib.from_mapping(record["config"])
    if (config.name, config.seed) != (record["method"], record["seed"]):
        raise UsageError(f"{name}: method or seed is not that of its config")
    if name != file_name(record):
        raise UsageError(f"{name}: a record of this content is called {file_name(record)}")
    correct = {attack: _bits(one, f"{name}: {attack}") for attack, one in record["attacks"].items()}
    if NATURAL not in correct or len(correct) < 2:
        raise UsageError(f"{name}: attacks has no {NATURAL}, or nothing else")
    published = Published(record, correct)
    expected = _worst_case(published)
    if record["worst_case"] != expected:
        raise UsageError(f"{name}: worst_case is {record['worst_case']}, must be {expected}")
    return published


def read(path: pathlib.Path) -> Published:
    """Reads and checks a file.

    Raises:
      UsageError: see ``validate``.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is not a result: {error}") from error
    return validate(record, path.name)


def _record(run: Run, evaluation: Evaluation, row: Row) -> dict[str, Any]:
    config = run.config
    overrides = overrides_of(config)
    attacks = {name: evaluation.results[name] for name in row.accuracy}
    for name, one in attacks.items():
        if not one.record.get("complete", True):
            raise UsageError(f"--workdirs: {name} of {run.workdir} was stopped before its end")
    published = Published({}, {name: one.correct for name, one in attacks.items()})
    workdir = f"runs/{config.name.replace(' ', '_')}-{config.seed}"
    settings = config_lib.to_mapping(config)
    settings["data"]["data_dir"] = ""
    notes = pathlib.Path(run.workdir) / NOTES
    return {
        "schema": SCHEMA,
        "method": config.name,
        "data": row.data,
        "data_fingerprint": row.provenance["data_fingerprint"][0],
        "network": row.network,
        "setting": setting(config, overrides),
        "norm": row.norm,
        "epsilon": row.epsilon,
        "seed": config.seed,
        "checkpoint": row.checkpoint,
        "step": row.step,
        "overrides": overrides,
        "train": _train_command(config, overrides, workdir),
        "evaluate": [
            command.replace(f"--workdir={run.workdir}", f"--workdir={workdir}")
            for command in row.evaluate
        ],
        "training": [
            {name: start[name] for name in ("step", *_ORIGIN, "created")}
            for start in workdir_lib.read_starts(run.workdir)
        ],
        "evaluation": {name: row.provenance[name] for name in _ORIGIN}
        | {"created": max(row.provenance["created"])},
        "notes": notes.read_text().splitlines() if notes.exists() else [],
        "attacks": {
            name: {
                "num_examples": len(one.correct),
                "num_correct": int(one.correct.sum()),
                "accuracy": int(one.correct.sum()) / len(one.correct),
                "seed": one.record["seed"],
                "settings": one.record["settings"],
                "warnings": one.record.get("warnings", []),
                "correct": np.packbits(one.correct).tobytes().hex(),
            }
            for name, one in attacks.items()
        },
        "adaptive": [attack for attack in row.adaptive if attack["broken"]],
        "diagnosis": _diagnosis(row),
        "worst_case": _worst_case(published),
        "config": settings,
    }


def _diagnosis(row: Row) -> dict[str, Any]:
    """The verdict of the diagnostics and the checks that fired; empty if they were not run."""
    if row.diagnosis is None:
        return {}
    fired = [check.name for check in row.diagnosis.fired]
    return {"verdict": row.diagnosis.verdict, "fired": fired}


def _train_command(config: Config, overrides: dict[str, Any], workdir: str) -> str:
    arguments = [
        f"--config=configs/{config.data.name}.py:{config.name.partition(' ')[0]}",
        f"--config.seed={config.seed}",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
        *(["--config.data.data_dir=DATA"] if config.data.data_dir else []),
        f"--workdir={workdir}",
    ]
    return f"python -m ancra_jax.train {shlex.join(arguments)}"


def _worst_case(published: Published) -> dict[str, Any]:
    survivors = published.survivors()
    num_correct, num_examples = int(survivors.sum()), len(survivors)
    return {
        "num_examples": num_examples,
        "num_correct": num_correct,
        "accuracy": num_correct / num_examples,
        "interval": list(wilson_interval(num_correct, num_examples)),
    }


def _check_fields(record: Any, fields: dict[str, type], name: str):
    if not isinstance(record, dict) or set(record) != set(fields):
        differing = sorted(set(record) ^ set(fields)) if isinstance(record, dict) else []
        raise UsageError(f"{name}: must have the fields of a result; differing: {differing}")
    for field, kind in fields.items():
        if type(record[field]) is not kind:
            raise UsageError(f"{name}: {field}={record[field]!r} must be of type {kind.__name__}")


def _bits(attack: Any, name: str) -> Bool[np.ndarray, "examples"]:
    _check_fields(attack, _ATTACK_FIELDS, name)
    count = attack["num_examples"]
    try:
        packed = np.frombuffer(bytes.fromhex(attack["correct"]), np.uint8)
    except ValueError as error:
        raise UsageError(f"{name}: correct is not hexadecimal: {error}") from error
    bits = np.unpackbits(packed).astype(bool)
    if count < 1 or len(packed) != -(-count // 8) or bits[count:].any():
        raise UsageError(f"{name}: correct holds {len(bits)} bits, num_examples is {count}")
    num_correct = int(bits.sum())
    if num_correct != attack["num_correct"] or attack["accuracy"] != num_correct / count:
        raise UsageError(
            f"{name}: {num_correct} of {count} examples are correct, not what num_correct="
            f"{attack['num_correct']} and accuracy={attack['accuracy']} say"
        )
    return bits[:count]
