"""Published rows, ``results/rows/*.json``: one evaluated checkpoint each, without its directory."""

from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from ancra_jax import config as config_lib
from ancra_jax.config.fields import build
from ancra_jax.config.schema import Config
from ancra_jax.errors import Problems, UsageError
from ancra_jax.ops.files import AnyPath, as_path, read_json
from ancra_jax.results.load import Evaluation, Run, check_correct, labels_of, load_runs
from ancra_jax.results.names import ADAPTIVE, attack_order

SCHEMA = 1
_FIELDS = {
    int: "schema seed step",
    float: "epsilon",
    str: "method data data_fingerprint network setting norm checkpoint train",
    list: "training notes adaptive",
    dict: "overrides evaluation attacks diagnosis worst_case config",
}
_ATTACK_FIELDS = {
    int: "num_examples num_correct seed",
    float: "accuracy",
    str: "correct",
    list: "warnings",
    dict: "settings",
}
_OF_A_SEARCH = {str: "search_precision", int: "denied"}
"""What an attack also says that did not search in the highest precision."""


def load_all(directories: Sequence[str]) -> list[Run]:
    """Read work directories, and directories of published rows: ``rows``, or what holds one.

    Raises:
      UsageError: see ``load_runs``; or a file is no published row.
    """
    files = {one: found for one in directories if (found := _row_files(one))}
    own = [one for one in directories if one not in files]
    runs = load_runs(own) if own or not files else []
    runs += [_run(path) for found in files.values() for path in found]
    labels = labels_of([run.config for run in runs])
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def _row_files(directory: str) -> list[AnyPath]:
    path = as_path(directory)
    path = path / "rows" if (path / "rows").is_dir() else path
    return sorted(path.glob("*.json")) if path.resolve().name == "rows" else []


def read_row(path: AnyPath) -> dict[str, Any]:
    """Read the JSON of a published row, whose fields are still to be checked."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is not a result: {error}") from error


def workdir_of(config: Config) -> str:
    """Return the work directory that the commands of a published row name."""
    return f"runs/{config.name.replace(' ', '_')}-{config.seed}"


def _run(path: AnyPath) -> Run:
    """Return a published row as the run whose directory its commands name."""
    record = read_row(path)
    check_row(record, str(path))
    config = config_lib.from_mapping(record["config"])
    origin = {name: _words(value) for name, value in record["evaluation"].items()}
    evaluation = evaluation_of(record, str(path), origin)
    if verdict := record["diagnosis"].get("verdict"):
        fired = _words(record["diagnosis"].get("fired", [])) or "no check fired"
        evaluation = replace(evaluation, notes=(f"diagnosis: {verdict} ({fired})",))
    return Run(workdir_of(config), config, config.name, (), (evaluation,), published=True)


def _words(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def evaluation_of(
    record: Mapping[str, Any], name: str, origin: Mapping[str, str] | None = None
) -> Evaluation:
    """Return the attacks of a published row, called ``name``, once their fields are checked."""
    shared = {key: record[key] for key in ("data", "data_fingerprint", "step")} | dict(origin or {})
    evaluation = Evaluation(record["checkpoint"])
    for attack in sorted(record["attacks"], key=attack_order):
        one = record["attacks"][attack]
        evaluation.correct[attack] = _correct(one, f"{name}: {attack}")
        more = {"attacks": record["adaptive"]} if attack == ADAPTIVE else {}
        evaluation.records[attack] = {**shared, **one, **more}
    return evaluation


def check_row(record: Any, name: str) -> None:
    """Check that a published row, called ``name``, is of this schema and has all fields."""
    _check_fields(record, _FIELDS, {}, name)
    if record["schema"] != SCHEMA:
        raise UsageError(f"{name}: has schema {record['schema']}, this version reads {SCHEMA}")


def _check_fields(
    record: Any, required: Mapping[type, str], optional: Mapping[type, str], name: str
) -> None:
    """Check the fields of a record, which are given by type, or raise a `UsageError`."""
    kinds: list[Any] = [(one, kind) for kind, names in required.items() for one in names.split()]
    kinds += [
        (one, kind, field(default=kind()))
        for kind, names in optional.items()
        for one in names.split()
    ]
    problems = Problems()
    build(make_dataclass("Record", kinds), record, name, problems)
    problems.raise_all()


def _correct(attack: Any, name: str) -> Bool[np.ndarray, "examples"]:
    """Return which examples are right, once they and what is said of them are checked."""
    _check_fields(attack, _ATTACK_FIELDS, _OF_A_SEARCH, name)
    try:
        packed = np.frombuffer(bytes.fromhex(attack["correct"]), np.uint8)
    except ValueError as error:
        raise UsageError(f"{name}: correct is not hexadecimal: {error}") from error
    correct = np.unpackbits(packed)[: attack["num_examples"]].astype(bool)
    check_correct(correct, attack, name)
    if attack["num_correct"] != correct.sum() or attack["correct"] != hexadecimal(correct):
        raise UsageError(
            f"{name}: correct is not of num_examples={len(correct)}, or not of "
            f"num_correct={attack['num_correct']}"
        )
    return correct


def hexadecimal(correct: Bool[np.ndarray, "examples"]) -> str:
    """Return flags as published rows hold them."""
    return np.packbits(correct).tobytes().hex()
