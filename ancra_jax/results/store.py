"""Results of an evaluation on disk, one JSON and one array file per attack, and their commands."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ancra_jax.config import WEIGHTS, path_list
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import (
    AnyPath,
    AnyPathLike,
    as_path,
    check_writable,
    read_json,
    write_arrays,
    write_atomically,
)
from ancra_jax.results.names import ADAPTIVE, APGD, AUTOATTACK, NATURAL, parse
from ancra_jax.run.workdir import provenance

SCHEMA = 1
_IDENTITY = ("attack", "checkpoint", "step", "num_examples", "seed", "settings", "data_fingerprint")
_PRECISION = "search_precision"  # part of an identity too; results without it are of the highest
# What results lie under: ``'best_ema'``, under another threat model ``'best_ema_l2_0.5'``.
_NAME = re.compile(r"(best|last)(?:_(ema|swa))?(?:_(linf|l2|l1)_([^_]+))?")


def evaluation_name(checkpoint: str, weights: str) -> str:
    """Return what results of a checkpoint are kept under: ``'best'``, ``'best_ema'``, ..."""
    return checkpoint if weights == "raw" else f"{checkpoint}_{weights}"


def under_threat_model(name: str, norm: str, epsilon: float) -> str:
    """Return what results under another threat model than the run's own are kept under.

    The radius is there to the last digit: ``'best_l2_0.5'``, ``'best_linf_16of255'``.
    """
    levels = round(epsilon * 255)
    radius = f"{levels}of255" if levels / 255 == epsilon < 1 else repr(epsilon)
    return f"{name}_{norm}_{radius}"


CHECKPOINTS = [evaluation_name(one, weights) for weights in WEIGHTS for one in ("best", "last")]


def evaluation_names(workdir: AnyPathLike) -> list[str]:
    """Return the names that results may lie under, of other threat models those that are there."""
    directory = as_path(workdir) / "evaluation"
    found = sorted(one.name for one in directory.iterdir()) if directory.is_dir() else []
    return CHECKPOINTS + [one for one in found if _NAME.fullmatch(one) and one not in CHECKPOINTS]


class ResultStore:
    """The directory ``evaluation/<checkpoint>`` of a work directory.

    An identity is what determines the numbers of a result: the attack, its settings, the
    checkpoint, its step, the data, the number of examples and the seed. Errors are `UsageError`.
    """

    def __init__(self, workdir: AnyPathLike, checkpoint: str):
        """Create the directory; ``checkpoint`` is an ``evaluation_name``."""
        self.directory = as_path(workdir) / "evaluation" / checkpoint
        check_writable(self.directory, f"--workdir={workdir}")

    def finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Return the finished result of an attack, if there is one; refuse another identity's.

        A result that says ``"complete": false`` was stopped by a time limit and is not finished.
        """
        path = self._path(identity)
        if not path.exists():
            return None
        result = read_result(path)
        for name in (*_IDENTITY, _PRECISION):
            usual = "highest" if name == _PRECISION else None
            found, asked = result.get(name, usual), identity.get(name, usual)
            if found != asked:
                raise UsageError(
                    f"{path} holds a result with {name}={found!r}, asked for is "
                    f"{name}={asked!r}: --force replaces it"
                )
        return result if result.get("complete", True) else None

    def partial_path(self, identity: dict[str, Any]) -> AnyPath:
        """Return where an unfinished attack keeps its state; another path for other settings."""
        known = [identity[name] for name in _IDENTITY]
        if identity.get(_PRECISION, "highest") != "highest":
            known.append(identity[_PRECISION])
        text = json.dumps(known, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.directory / f"{identity['attack']}.{digest}.partial.npz"

    def begun(self, identity: dict[str, Any]) -> bool:
        """Return whether there is a result of an attack, or its state, in this search precision."""
        path, partial = self._path(identity), self.partial_path(identity)
        if path.exists():
            return read_result(path).get(_PRECISION, "highest") == identity[_PRECISION]
        return partial.exists() or partial.with_suffix(".state").exists()

    def write(
        self, identity: dict[str, Any], arrays: dict[str, np.ndarray], seconds: float, **more: Any
    ) -> dict[str, Any]:
        """Write the arrays, then the JSON, and return it: a JSON file means a whole result.

        The arrays are per example; of ``correct`` (whether each was classified correctly) the JSON
        has sum and mean. ``seconds`` are of this run of the command, ``more`` further entries.
        """
        path = self._path(identity)
        write_arrays(path.with_suffix(".npz"), arrays)
        result = {"schema": SCHEMA, **identity}
        if "correct" in arrays:
            correct = arrays["correct"]
            result |= {"num_correct": int(correct.sum()), "accuracy": float(correct.mean())}
        result |= {**more, "seconds": round(seconds, 3), **provenance()}
        write_atomically(path, json.dumps(result, indent=2) + "\n")
        return read_result(path)

    def _path(self, identity: dict[str, Any]) -> AnyPath:
        return self.directory / f"{identity['attack']}.json"


def read_result(path: AnyPath) -> dict[str, Any]:
    """Read the JSON of one attack, or raise a `UsageError` that says what is wrong with it."""
    try:
        result = read_json(path)
        if result["schema"] == SCHEMA:
            return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: is not a result file: {error!r}") from error
    raise UsageError(f"{path}: has schema {result['schema']}, this version reads {SCHEMA}")


def evaluate_command(workdir: str, checkpoint: str) -> str:
    """Return the command that evaluates a checkpoint, which an ``evaluation_name`` names."""
    match = _NAME.fullmatch(checkpoint)
    name, weights, norm, epsilon = match.groups() if match else (checkpoint, "", "", "")
    flags = "" if name == "best" else f" --checkpoint={name}"
    flags += f" --weights={weights}" if weights else ""
    flags += f" --norm={norm} --epsilon={epsilon.replace('of', '/')}" if norm else ""
    return f"ancra evaluate {shlex.quote(f'--workdir={workdir}')}{flags}"


def evaluate_all(workdirs: Sequence[str], checkpoint: str, flags: str) -> str:
    """Return the command that evaluates this checkpoint of each of these runs."""
    if len(workdirs) == 1:
        return evaluate_command(workdirs[0], checkpoint) + flags
    one = evaluate_command("RUN", checkpoint).replace("RUN", '"$run"', 1)
    return f"for run in {shlex.join(workdirs)}; do {one}{flags}; done"


def evaluate_commands(
    workdir: str, checkpoint: str, records: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the commands that compute results: one a suite, number of examples and seed.

    ``records`` are the results' JSON files by attack; without any, the command is that of the
    paper's suite. Of networks whose images were tried they know no more than the base name.
    """
    how = {
        name: f"--num_examples={record['num_examples']} --seed={record['seed']}"
        for name, record in records.items()
    }
    command = evaluate_command(workdir, checkpoint)
    commands: dict[str, None] = {}
    precisions = {r.get(_PRECISION, "highest") for name, r in records.items() if name != NATURAL}
    searched = precisions - {"highest"}
    adaptive = adaptive_flags(records.get(ADAPTIVE, {}))
    worst_case = f" --suite=worst_case{adaptive}"
    # It runs quick, APGD and the adaptive attacks, and would be refused if those are there already
    # from another command with other settings.
    together = len(precisions) == 1 and not APGD.keys().isdisjoint(records)
    if ADAPTIVE in records:
        alike = how[ADAPTIVE] == how.get(NATURAL)
        together = together and alike and AUTOATTACK not in records
    usual = worst_case if together else " --suite=quick"
    if how.get(AUTOATTACK) == how.get(NATURAL):  # with which the paper's suite ends
        usual = ""
    for name, record in records.items():
        family, version, _, released = parse(name)
        suite = usual
        if name in APGD and usual != worst_case:
            suite = " --suite=apgd"
        elif name == ADAPTIVE and usual != worst_case:
            suite = f" --suite=adaptive{adaptive}"
        elif released:
            suite = " --suite=released"
        elif name == AUTOATTACK and how.get(NATURAL) != how[name]:
            suite = " --suite=autoattack"
        elif name not in APGD and (listed := record["settings"].get("attacks_to_run")):
            suite = f" --attacks={','.join(listed)}"
        elif family == "AA" and version:
            suite = f" --suite=autoattack --autoattack_version={version}"
        precision = record.get(_PRECISION, "highest")
        if name == NATURAL:  # part of the suites that search
            precision = min(searched, default="highest")
        if precision != "highest":
            suite += f" --search_precision={precision}"
        commands[f"{command}{suite} {how[name]}"] = None
    return tuple(commands) or (command,)


def adaptive_flags(record: Mapping[str, Any]) -> str:
    """Return the flags of the adaptive attacks of a result; '' of none."""
    settings = record.get("settings", {})
    budget = settings.get("budget", "standard")
    flags = "" if budget == "standard" else f" --adaptive_budget={budget}"
    if sources := settings.get("transfer_from"):
        names = path_list([source["name"] for source in sources])
        flags += f" {shlex.quote(f'--transfer_from={names}')}"
    return flags
