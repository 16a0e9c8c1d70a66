"""A row of ``results/``: one evaluated checkpoint and all that made it, in one JSON file.

For every attack the file says of each example whether it was classified correctly, as bits. Every
number in it, and every comparison of two rows, can be computed again from those.
"""

import hashlib
import importlib
import json
import pathlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from ancra_jax import config as config_lib
from ancra_jax.config.schema import Config, extra_examples
from ancra_jax.data import inspect
from ancra_jax.data.dataset import title_of
from ancra_jax.errors import Problems, UsageError
from ancra_jax.results.load import method_settings
from ancra_jax.results.names import NATURAL
from ancra_jax.results.published import (
    SCHEMA,
    check_row,
    evaluation_of,
    hexadecimal,
    read_row,
    workdir_of,
)
from ancra_jax.results.rows import Row, row_of
from ancra_jax.results.statistics import WorstCase
from ancra_jax.results.store import CHECKPOINTS
from ancra_jax.run import automatic
from ancra_jax.run import workdir as workdir_lib

_ORIGIN = ("device", "commit", "versions")
_OF_ROW = ("data", "network", "norm", "epsilon", "seed", "checkpoint", "step")


@dataclass(frozen=True)
class Published:
    """A row that was checked."""

    record: dict[str, Any]  # the content of its file
    row: Row  # its numbers, computed again from the bits


def file_name(record: Mapping[str, Any]) -> str:
    """Return a record's file name: another one for every method, setting, seed and checkpoint."""
    config = config_lib.from_mapping(record["config"])
    settings = json.dumps(method_settings(config), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
    name = f"{config.data.name}-{config.name}-{digest}-seed{config.seed}-{record['checkpoint']}"
    return f"{''.join(c if c.isalnum() or c in '-_' else '_' for c in name)}.json"


def read_all(directory: pathlib.Path) -> dict[str, Published]:
    """Read and check all rows in a directory, by file name."""
    return {
        path.name: validate(read_row(path), path.name) for path in sorted(directory.glob("*.json"))
    }


def validate(record: Any, name: str) -> Published:
    """Check the content of a file: its fields, and that its numbers follow from its examples."""
    check_row(record, name)
    config = config_lib.from_mapping(record["config"])
    if (config.name, config.seed) != (record["method"], record["seed"]):
        raise UsageError(f"{name}: method or seed is not that of its config")
    if name != file_name(record):
        raise UsageError(f"{name}: a record of this content is called {file_name(record)}")
    row = row_of(workdir_of(config), config, config.name, evaluation_of(record, name))
    if row.worst_case is None:
        raise UsageError(f"{name}: attacks has no {NATURAL}, or nothing else")
    expected = _worst_case(row.worst_case)
    if _rounded(expected) != _rounded(record["worst_case"]):
        raise UsageError(f"{name}: worst_case is {record['worst_case']}, must be {expected}")
    _check_configuration(record, config, row, name)
    return Published(record, row)


def _check_configuration(record: Mapping[str, Any], config: Config, row: Row, name: str) -> None:
    """Refuse a record that says otherwise of itself than its configuration does."""
    expected = {"norm": config.evaluation.norm, "epsilon": config.evaluation.epsilon}
    for attack, one in record["attacks"].items():
        found = {key: one["settings"].get(key, value) for key, value in expected.items()}
        if found != expected:
            raise UsageError(f"{name}: {attack}: settings has {found}, its config {expected}")
    settings = method_settings(config)
    expected |= {
        "network": row.network,
        "setting": _setting(config, record["overrides"]),
        "overrides": {key: settings.get(key) for key in record["overrides"]},
    }
    for key, value in expected.items():
        if record[key] != value:
            raise UsageError(f"{name}: {key} is {record[key]!r}; by its config it is {value!r}")
    allowed = {
        "data": [title_of(config.data.name, recoded) for recoded in ("", "JPEG")],
        "checkpoint": CHECKPOINTS,
    }
    for key, words in allowed.items():
        if record[key] not in words:
            raise UsageError(f"{name}: {key} is {record[key]!r}; allowed are {', '.join(words)}")
    if not re.fullmatch(r"[0-9a-f]{16}", record["data_fingerprint"]):
        raise UsageError(
            f"{name}: data_fingerprint is {record['data_fingerprint']!r}, not 16 hexadecimal digits"
        )
    _check_step(record, config, name)


def _check_step(record: Mapping[str, Any], config: Config, name: str) -> None:
    """Refuse a step that the run does not reach, or after which no best checkpoint is chosen."""
    data = config.data
    there = inspect(Problems(), data.name)  # None of a folder, whose images may be any
    examples = data.train_examples or (there.train if there else 0)
    if not examples:
        return
    examples -= data.selection_examples if data.selection_split == "holdout" else 0
    epoch = max(examples // (config.batch_size - extra_examples(config)), 1)
    last = min(config.epochs * epoch, config.max_steps or config.epochs * epoch)
    step = record["step"]
    best = record["checkpoint"].startswith("best")
    if not 1 <= step <= last or (best and step % epoch and step != last):
        raise UsageError(
            f"{name}: step is {step}; by its config an epoch has {epoch} steps, the run {last}"
        )


def check_together(rows: Mapping[str, Published]) -> None:
    """Refuse rows of the same data whose fingerprints differ."""
    found: dict[str, tuple[str, str]] = {}
    for name, one in rows.items():
        data = one.row.config.data
        if data.name == "folder":  # of whatever is in it
            continue
        parts = (data.image_size, data.train_examples, data.test_examples, data.options)
        key = json.dumps([one.record["data"], data.name, parts])
        fingerprint = one.record["data_fingerprint"]
        other, first = found.setdefault(key, (name, fingerprint))
        if fingerprint != first:
            raise UsageError(
                f"{name}: data_fingerprint is {fingerprint!r}, that of {other} {first!r}: by their "
                "configs both are of the same data"
            )


def record_of(row: Row) -> dict[str, Any]:
    """Return the content of a row's file; all attacks on it must have been run to their end."""
    if row.worst_case is None:
        raise UsageError(
            f"--workdirs: {row.workdir} ({row.checkpoint}) has no worst case: it was not "
            "evaluated on natural images and under attacks, those through its mask included"
        )
    for name, record in row.evaluation.records.items():
        if not record.get("complete", True):
            raise UsageError(f"--workdirs: {name} of {row.workdir} was stopped before its end")
    config = row.config
    diagnosis = row.diagnosis
    overrides = _overrides(config)
    settings = config_lib.to_mapping(config)
    settings["data"]["data_dir"] = ""
    created = max(row.provenance["created"])
    fired = [check.name for check in diagnosis.fired] if diagnosis else []
    return {
        "schema": SCHEMA,
        "method": config.name,
        **{name: getattr(row, name) for name in _OF_ROW},
        "data_fingerprint": row.provenance["data_fingerprint"][0],
        "setting": _setting(config, overrides),
        "overrides": overrides,
        "train": _train_command(config, overrides),
        "training": [
            {name: start[name] for name in ("step", *_ORIGIN, "created")}
            for start in workdir_lib.read_starts(row.workdir)
        ],
        "evaluation": {name: row.provenance[name] for name in _ORIGIN} | {"created": created},
        "notes": [],
        "attacks": {
            name: _attack(one, row.evaluation.correct[name])
            for name, one in row.evaluation.records.items()
        },
        "adaptive": [attack for attack in row.adaptive if attack["broken"]],
        "diagnosis": {"verdict": diagnosis.verdict, "fired": fired} if diagnosis else {},
        "worst_case": _worst_case(row.worst_case),
        "config": settings,
    }


def _attack(record: Mapping[str, Any], correct: Bool[np.ndarray, "examples"]) -> dict[str, Any]:
    count = len(correct)
    num_correct = int(correct.sum())
    search = {
        "search_precision": record.get("search_precision", "highest"),
        "denied": record.get("denied", 0),
    }
    return {
        "num_examples": count,
        "num_correct": num_correct,
        "accuracy": num_correct / count,
        "seed": record["seed"],
        "settings": record["settings"],
        "warnings": record.get("warnings", []),
        "correct": hexadecimal(correct),
        **(search if search["search_precision"] != "highest" else {}),
    }


def _worst_case(worst_case: WorstCase) -> dict[str, Any]:
    content = asdict(worst_case) | {"interval": list(worst_case.interval)}
    del content["attacks"]
    return content


def _rounded(content: Any) -> Any:
    """Return JSON content with 9 decimals, since versions of libraries differ in the last ones."""
    return json.loads(json.dumps(content), parse_float=lambda number: round(float(number), 9))


def _overrides(config: Config) -> dict[str, Any]:
    """Return what a run has set otherwise than its method's recipe in ``configs/``."""
    data = config.data.name
    method = config.name.partition(" ")[0]
    try:
        recipe = importlib.import_module(f"configs.{data}").get_config(method)
    except ImportError:
        raise UsageError(
            f"there is no configs/{data}.py here: run this in the root of the repository"
        ) from None
    except LookupError as error:
        raise UsageError(f"configs/{data}.py:{method}: {error.args[0]}") from error
    original = method_settings(automatic.choose(config_lib.from_mapping(recipe), None))
    settings = method_settings(config).items()
    return {name: value for name, value in settings if value != original.get(name)}


def _setting(config: Config, overrides: dict[str, Any]) -> str:
    """Return in words how a run differs from the paper's; '' if it does not."""
    if not overrides:
        return ""
    parts = [
        f"width {config.model.width}" if config.model.width else "",
        f"{config.data.train_examples:,} images" if config.data.train_examples else "",
        f"{config.epochs} epochs",
    ]
    return f"{', '.join(filter(None, parts))}: not the paper's setting"


def _train_command(config: Config, overrides: dict[str, Any]) -> str:
    arguments = [
        f"--config=configs/{config.data.name}.py:{config.name.partition(' ')[0]}",
        f"--config.seed={config.seed}",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
        *(["--config.data.data_dir=DATA"] if config.data.data_dir else []),
        f"--workdir={workdir_of(config)}",
    ]
    return f"ancra train {shlex.join(arguments)}"
