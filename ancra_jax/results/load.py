"""What runs left on disk: their curves, and their evaluations example by example."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Bool, Float

from ancra_jax.attacks.diagnostics.api import Check
from ancra_jax.config.schema import WEIGHTS, Config, to_mapping
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import AnyPath, as_path, read_arrays, read_json_lines
from ancra_jax.results.features import StoredFeatures, load_features
from ancra_jax.results.names import (
    DIAGNOSTICS,
    FEATURES,
    NATURAL,
    NO_ATTACKS,
    attack_order,
    display_name,
)
from ancra_jax.results.store import (
    evaluate_command,
    evaluate_commands,
    evaluation_name,
    evaluation_names,
    read_result,
)
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.averaging import NATURAL_ACCURACY, ROBUST_ACCURACY, metric_name

MAX_SETTINGS_IN_LABEL = 3
_TARGET = ("step", "data_fingerprint")
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("attack", "data", "data_fingerprint"), str),
    **dict.fromkeys(("step", "num_examples", "seed"), int),
    "accuracy": int | float,
    "settings": dict,
}


@dataclass(frozen=True)
class StoredDiagnosis:
    """The diagnostics of one checkpoint."""

    step: int  # of the checkpoint
    data_fingerprint: str
    num_examples: int  # the first ones of the test split
    verdict: str  # 'trustworthy', 'suspicious' or 'masked'
    checks: tuple[Check, ...]  # all of them, those that were not run included
    compared_with: tuple[str, ...]  # the results of attacks that were there already
    epsilons: tuple[float, ...]  # radii under Linf, on the [0, 1] pixel scale
    accuracies: tuple[float, ...]  # that are left at these radii, as fractions
    offsets: Float[np.ndarray, "points"]  # of the loss landscape, on the pixel scale
    # Cross-entropy along the gradient's sign and along random signs, around a few images.
    losses: Float[np.ndarray, "shown points points"]

    @property
    def fired(self) -> tuple[Check, ...]:
        """The checks that fired."""
        return tuple(check for check in self.checks if check.fired)


@dataclass(frozen=True)
class Evaluation:
    """The attacks on one checkpoint that can be looked at together."""

    checkpoint: str  # 'best', 'last', or of an average ('best_ema')
    # By the attack's name, in the order of ``names.attack_order``: the content of its JSON file;
    # and whether the final logits are right, of each of the first examples of the test split.
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    correct: dict[str, Bool[np.ndarray, "_"]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what was left out, and why
    diagnosis: StoredDiagnosis | None = None  # of the same checkpoint
    features: StoredFeatures | None = None  # of the same checkpoint


@dataclass(frozen=True)
class Run:
    """A work directory."""

    workdir: str  # as the user wrote it
    config: Config  # of the training
    label: str  # the method, with the settings in which runs of that method differ
    curves: tuple[dict[str, Any], ...]  # the records of ``metrics.jsonl``
    evaluations: tuple[Evaluation, ...]  # in the order of ``evaluation_names``
    published: bool = False  # of a published row, whose directory need not be here


class Selected(NamedTuple):
    """What was found of a checkpoint on the selection split."""

    step: int
    epoch: int
    natural: float  # accuracy, as a fraction
    robust: float  # accuracy under PGD


def load_runs(workdirs: Sequence[str]) -> list[Run]:
    """Read work directories.

    Raises:
      UsageError: one holds no run or appears twice, a file is damaged, or there is neither a curve
        nor an evaluation in any of them.
    """
    paths = [as_path(workdir).resolve() for workdir in workdirs]
    for workdir, path in zip(workdirs, paths, strict=True):
        if paths.count(path) > 1:
            raise UsageError(f"--workdirs: {workdir} is there twice")
    configs = [workdir_lib.read_config(workdir, "--workdirs") for workdir in workdirs]
    runs = []
    for workdir, config, label in zip(workdirs, configs, labels_of(configs), strict=True):
        found = (load_evaluation(workdir, checkpoint) for checkpoint in evaluation_names(workdir))
        evaluations = tuple(one for one in found if one.records or one.diagnosis or one.features)
        runs.append(Run(workdir, config, label, load_curves(workdir), evaluations))
    if not any(run.curves or run.evaluations for run in runs):
        raise UsageError(
            "--workdirs: neither training metrics nor an evaluation in "
            f"{', '.join(workdirs)}; run ancra train, then ancra evaluate"
        )
    return runs


def load_evaluation(workdir: str, checkpoint: str) -> Evaluation:
    """Read the results of a checkpoint; an empty evaluation where there are none.

    Results that belong to another state of the run than the natural accuracy cannot be put beside
    it and are left out: they are of the best checkpoint of a run that went on, or of other data.
    A damaged file raises a `UsageError`. ``checkpoint`` is an ``evaluation_name``.
    """
    directory = as_path(workdir) / "evaluation" / checkpoint
    results = load_results(directory)
    apart: dict[str, Any] = {
        DIAGNOSTICS: load_diagnosis(directory),
        FEATURES: load_features(directory),
    }
    if not results:
        return Evaluation(checkpoint, {}, {}, (), *apart.values())
    records = {name: record for name, (record, _) in results.items()}
    reference = records.get(NATURAL) or max(records.values(), key=lambda one: one["step"])
    command = evaluate_command(workdir, checkpoint)
    belonging = {name: one for name, one in records.items() if same_target(one, reference)}
    notes = [
        f"{display_name(name)} is of another checkpoint, epsilon or data set (step "
        f"{record['step']}) and left out; "
        f"{evaluate_commands(workdir, checkpoint, {name: record})[0]} --force computes it again"
        for name, record in records.items()
        if name not in belonging
    ]
    for suite, one in apart.items():
        if one and any(getattr(one, name) != reference[name] for name in _TARGET):
            apart[suite] = None
            notes.append(
                f"the {suite} are of another checkpoint or data set and left out; "
                f"{command} --suite={suite} --force computes them again"
            )
    correct = {name: results[name][1]["correct"] for name in belonging}
    return Evaluation(checkpoint, belonging, correct, tuple(notes), *apart.values())


def load_results(
    directory: AnyPath,
) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Read JSON and arrays of all attacks in a directory, whatever they belong to."""
    names = {path.stem for path in directory.glob("*.json")} - {*NO_ATTACKS}
    results = {}
    for name in sorted(names, key=attack_order):
        path = directory / f"{name}.json"
        record = read_result(path)
        for field_name, kind in _FIELDS.items():
            if not isinstance(record.get(field_name), kind):
                value = record.get(field_name)
                raise UsageError(f"{path}: {field_name}={value!r} is not what a result holds")
        if record["attack"] != name:
            raise UsageError(f"{path}: holds the attack {record['attack']!r}")
        if record.get("checkpoint", directory.name) != directory.name:
            raise UsageError(f"{path}: is of the checkpoint {record['checkpoint']!r}")
        arrays = read_arrays(path.with_suffix(".npz"), ["correct"])
        check_correct(arrays["correct"], record, str(path))
        results[name] = (record, arrays)
    return results


def load_diagnosis(directory: AnyPath) -> StoredDiagnosis | None:
    """Read the diagnostics in an evaluation's directory; None if there are none."""
    path = directory / f"{DIAGNOSTICS}.json"
    if not path.exists():
        return None
    record = read_result(path)
    arrays = read_arrays(path.with_suffix(".npz"), ["landscape_offsets", "landscape_losses"])
    try:
        curve = record["epsilon_curve"]
        points = list(zip(curve["epsilons"], curve["accuracy"], strict=True))
        return StoredDiagnosis(
            **{key: record[key] for key in ("step", "data_fingerprint", "num_examples", "verdict")},
            checks=tuple(Check(**check) for check in record["rows"]),
            compared_with=tuple(record.get("compared_with", ())),
            epsilons=tuple(float(epsilon) for epsilon, _ in points),
            accuracies=tuple(float(accuracy) for _, accuracy in points),
            offsets=arrays["landscape_offsets"],
            losses=arrays["landscape_losses"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: is not what the diagnostics write: {error!r}") from error


def same_target(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two results are of one checkpoint, data set, norm and epsilon.

    Both are the JSON of a result; where norm or epsilon is missing, it is no difference.
    """
    settings = other["settings"]
    return all(one[name] == other[name] for name in _TARGET) and all(
        one["settings"].get(name, settings[name]) == settings[name]
        for name in ("norm", "epsilon")
        if settings.get(name) is not None
    )


def method_settings(config: Config) -> dict[str, Any]:
    """Return the settings that make a method, by dotted name, without the seed."""
    free = workdir_lib.FREE_SETTINGS - {"max_steps"} | {"seed"}
    settings = flatten_dict(to_mapping(config), sep=".")
    return {name: value for name, value in settings.items() if name not in free}


def labels_of(configs: Sequence[Config]) -> list[str]:
    """Return the methods' names, with the settings in which runs of one name differ."""
    labels = []
    for config in configs:
        namesakes = [other for other in configs if other.name == config.name]
        label = config.name
        if len({other.data.name for other in namesakes}) > 1:
            label += f" on {config.data.name}"
            namesakes = [other for other in namesakes if other.data.name == config.data.name]
        others = [method_settings(other) for other in namesakes]
        differing = [
            f"{name.rpartition('.')[2]}={value}"
            for name, value in method_settings(config).items()
            if any(other.get(name) != value for other in others)
        ]
        labels.append(", ".join([label, *differing[:MAX_SETTINGS_IN_LABEL]]))
    return labels


def load_curves(workdir: str) -> tuple[dict[str, Any], ...]:
    """Return the records of a run's ``metrics.jsonl``, ``'train'`` and ``'selection'``.

    Raises:
      UsageError: it cannot be read or is damaged.
    """
    path = as_path(workdir) / workdir_lib.METRICS
    try:
        records = read_json_lines(path)
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    # A killed run leaves at most its last line unfinished.
    whole = sum(map(bool, lines)) - lines[-1].startswith(b"{")
    if not all(map(workdir_lib.is_metric, records)) or len(records) < whole:
        raise UsageError(
            f"{path}: is damaged: it holds lines that are no records of training; the command that "
            "trained it sets them aside"
        )
    return tuple(record for record in records if record["kind"] in ("train", "selection"))


def selected(curves: Sequence[dict[str, Any]]) -> dict[str, Selected]:
    """Return what was found of the best and of the last checkpoint, by ``evaluation_name``."""
    chosen = {}
    for weights in WEIGHTS:
        natural, robust = (metric_name(weights, one) for one in (NATURAL_ACCURACY, ROBUST_ACCURACY))
        found = [
            Selected(one["step"], one["epoch"], one[natural], one[robust])
            for one in curves
            if robust in one
        ]
        if found:  # of equally good ones the later is the best
            best = max(found, key=lambda one: (one.robust, one.step))
            chosen[evaluation_name("best", weights)] = best
            chosen[evaluation_name("last", weights)] = found[-1]
    return chosen


def check_correct(correct: np.ndarray, record: Mapping[str, Any], name: str) -> None:
    """Check that examples are what the JSON of a result, called ``name``, says of them."""
    count = record["num_examples"]
    if correct.dtype != bool or correct.shape != (count,) or count < 1:
        raise UsageError(
            f"{name}: num_examples is {count}, its array correct holds {correct.dtype} of shape "
            f"{correct.shape}"
        )
    if not math.isclose(correct.mean(), record["accuracy"], abs_tol=1e-6):
        raise UsageError(
            f"{name}: accuracy is {record['accuracy']:.4%}, {correct.mean():.4%} of the examples "
            "are correct: they are not of one evaluation"
        )
