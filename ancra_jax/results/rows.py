"""The rows of a report as numbers: one for each checkpoint, one for several seeds."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ancra_jax.results.diagnosis import ReportedDiagnosis
from ancra_jax.results.load import Evaluation, Run, method_settings
from ancra_jax.results.names import (
    ADAPTIVE,
    AUTOATTACK,
    FAMILIES,
    NATURAL,
    WITH_P,
    attack_order,
    display_name,
    evaluate_command,
    evaluate_commands,
    scenario_of,
)
from ancra_jax.results.statistics import Spread, _means, _spread, _spreads, wilson_interval

PROVENANCE = ("seed", "data_fingerprint", "device", "commit", "versions", "created")


@dataclass(frozen=True)
class WorstCase:
    """Examples that are right on the natural image and under every attack.

    Attributes:
      accuracy: their share.
      interval: of 95 % (Wilson), as fractions.
      num_correct: their number.
      num_examples: of how many.
      attacks: that took part.
    """

    accuracy: float
    interval: tuple[float, float]
    num_correct: int
    num_examples: int
    attacks: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One checkpoint of one run; all that the table, the figures and the JSON file say of it.

    Attributes:
      label: of the method.
      workdir: of the run.
      checkpoint: ``'best'``, ``'last'``, or of an average (``'best_ema'``).
      seed: of the training.
      data: the data set; of an evaluated row with what sets it apart, ``CIFAR-10 (JPEG)``.
      norm: of the threat model.
      epsilon: on the [0, 1] pixel scale.
      network: its architecture.
      evaluate: the commands that compute the row.
      step: of the checkpoint; None where it has not been evaluated, as in what follows.
      num_examples: that each attack saw.
      worst_case: see there; None where the natural images or the attacks are missing.
      accuracy: natural and under each attack, as fractions.
      mean: over the attacks ``without_p`` and ``with_p``.
      fooled_attacks: a warning for each that leaves more accuracy than there is without an attack.
      warnings: of the attacks themselves.
      provenance: what made the numbers; several entries where the attacks differ in it.
      reverse_attention: whether the network has it.
      rungs: see ``report_rungs``.
      common_accuracy: as ``accuracy``, on the first examples that all attacks saw, as ``rungs``.
      adaptive: what each adaptive attack did.
      gate: what the defence says of its part without a gradient, as numbers.
      diagnosis: of the checkpoint, if there is one.
    """

    label: str
    workdir: str
    checkpoint: str
    seed: int
    data: str
    norm: str
    epsilon: float
    network: str
    evaluate: tuple[str, ...]
    step: int | None = None
    num_examples: dict[str, int] = field(default_factory=dict)
    worst_case: WorstCase | None = None
    accuracy: dict[str, float] = field(default_factory=dict)
    mean: dict[str, float] = field(default_factory=dict)
    fooled_attacks: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    provenance: dict[str, list[str]] = field(default_factory=dict)
    reverse_attention: bool = False
    rungs: dict[str, float] = field(default_factory=dict)
    common_accuracy: dict[str, float] = field(default_factory=dict)
    adaptive: tuple[dict[str, Any], ...] = ()
    gate: dict[str, float] = field(default_factory=dict)
    diagnosis: ReportedDiagnosis | None = None

    @property
    def title(self) -> str:
        """Names the row in a sentence."""
        return f"{self.label} (seed {self.seed}, {self.checkpoint} checkpoint)"

    @property
    def comparable(self) -> tuple:
        """What two rows must share for their numbers to be compared."""
        fingerprints = tuple(self.provenance.get("data_fingerprint", ()))
        return self.data, fingerprints, self.norm, self.epsilon, self.examples

    @property
    def setting(self) -> dict[str, str]:
        """What it was measured on, in words."""
        return {
            "Network": self.network,
            "Data": self.data,
            "Epsilon": f"{self.norm} {epsilon_text(self.epsilon)}",
            "Examples": " / ".join(map(str, self.examples)),
        }

    @property
    def examples(self) -> tuple[int, ...]:
        """The different numbers of examples, the smallest first."""
        return tuple(sorted(set(self.num_examples.values())))


@dataclass(frozen=True)
class SeedsRow:
    """Several seeds of one method, evaluated in one way; a quantity that one lacks is left out."""

    label: str
    checkpoint: str
    setting: dict[str, str]
    seeds: tuple[int, ...]
    worst_case: Spread | None
    accuracy: dict[str, Spread]
    examples: tuple[int, ...]
    mean: dict[str, Spread]
    fooled_attacks: tuple[str, ...]
    rungs: dict[str, Spread]


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """A row for each evaluated checkpoint, and an empty one for a run without evaluation."""
    rows = []
    for run in runs:
        if not run.evaluations:
            rows.append(_row(run, "best"))
        for evaluation in run.evaluations:
            if evaluation.results:
                rows.append(_evaluated_row(run, evaluation))
            else:
                row = _row(run, evaluation.checkpoint)
                rows.append(dataclasses.replace(row, diagnosis=evaluation.diagnosis))
    return rows


def seeds_rows(runs: Sequence[Run], rows: Sequence[Row]) -> list[SeedsRow]:
    """A row for each method that was trained with several seeds and evaluated in one way."""
    settings = {run.workdir: str(method_settings(run.config)) for run in runs}
    groups: dict[tuple, dict[int, Row]] = {}
    for row in rows:
        if row.accuracy:
            key = (settings[row.workdir], row.checkpoint, row.comparable)
            groups.setdefault(key, {}).setdefault(row.seed, row)
    return [_seeds_row(list(group.values())) for group in groups.values() if len(group) > 1]


def _row(run: Run, checkpoint: str) -> Row:
    """Of a checkpoint that has not been evaluated."""
    model = run.config.model
    return Row(
        label=run.label,
        workdir=run.workdir,
        checkpoint=checkpoint,
        seed=run.config.seed,
        data=run.config.data.name,
        norm=run.config.evaluation.norm,
        epsilon=run.config.evaluation.epsilon,
        network=f"{model.name}, width {model.width}" if model.width else model.name,
        evaluate=(evaluate_command(run.workdir, checkpoint),),
        reverse_attention=model.reverse_attention,
    )


def _evaluated_row(run: Run, evaluation: Evaluation) -> Row:
    names = sorted(evaluation.results, key=lambda name: attack_order(name, FAMILIES))
    records = {name: evaluation.results[name].record for name in names}
    first = records[names[0]]
    accuracy = {name: records[name]["accuracy"] for name in names}
    return dataclasses.replace(
        _row(run, evaluation.checkpoint),
        data=first["data"],
        norm=first["settings"].get("norm", run.config.evaluation.norm),
        epsilon=first["settings"].get("epsilon", run.config.evaluation.epsilon),
        step=first["step"],
        num_examples={name: records[name]["num_examples"] for name in names},
        worst_case=_worst_case(evaluation),
        accuracy=accuracy,
        mean=_means(accuracy),
        fooled_attacks=evaluation.fooled_attacks(),
        evaluate=evaluate_commands(run.workdir, evaluation.checkpoint, records),
        rungs=rungs_of(evaluation),
        common_accuracy=common_accuracy(evaluation),
        adaptive=adaptive_attacks(evaluation),
        gate=gate_of(evaluation),
        diagnosis=evaluation.diagnosis,
        warnings=tuple(
            f"{display_name(name)}: {warning}"
            for name, record in records.items()
            for warning in record.get("warnings", ())
        ),
        provenance={
            name: sorted({_text(record.get(name)) for record in records.values()})
            for name in PROVENANCE
        },
    )


def _worst_case(evaluation: Evaluation) -> WorstCase | None:
    survivors = evaluation.survivors()
    if survivors is None:
        return None
    num_correct, num_examples = int(survivors.sum()), len(survivors)
    return WorstCase(
        accuracy=num_correct / num_examples,
        interval=wilson_interval(num_correct, num_examples),
        num_correct=num_correct,
        num_examples=num_examples,
        attacks=tuple(sorted(evaluation.attacks, key=lambda name: attack_order(name, FAMILIES))),
    )


def _seeds_row(rows: list[Row]) -> SeedsRow:
    worst_cases = [row.worst_case for row in rows if row.worst_case]
    attacks = {worst_case.attacks for worst_case in worst_cases}
    # The worst of other attacks is another quantity, and so is their mean.
    alike = len(attacks) == 1 and len(worst_cases) == len(rows)
    return SeedsRow(
        label=rows[0].label,
        checkpoint=rows[0].checkpoint,
        setting=rows[0].setting,
        seeds=tuple(row.seed for row in rows),
        worst_case=_spread([one.accuracy for one in worst_cases]) if alike else None,
        accuracy=_spreads([row.accuracy for row in rows]),
        examples=rows[0].examples,
        mean=_spreads([row.mean for row in rows]) if alike else {},
        fooled_attacks=tuple({name: None for row in rows for name in row.fooled_attacks}),
        rungs=_spreads([row.rungs for row in rows]),
    )


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return "unknown" if value is None else str(value)


def epsilon_text(epsilon: float) -> str:
    """``8/255`` where it is such a fraction."""
    levels = epsilon * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-4 else f"{epsilon:.4g}"


RUNGS = ("Nat", "FGSM", "PGD", "AutoAttack", "With p", "Adaptive")
"""With p: the examples that no attack with p breaks. Worst case: those that nothing breaks."""


def common_accuracy(evaluation: Evaluation) -> dict[str, float]:
    """The accuracy under each attack on the first examples, as many as all of them saw.

    On these the worst case is never above a single attack.
    """
    count = evaluation.num_examples
    return {name: float(one.correct[:count].mean()) for name, one in evaluation.results.items()}


def rungs_of(evaluation: Evaluation) -> dict[str, float]:
    """The accuracy on every rung that was climbed, as a fraction; see ``common_accuracy``."""
    accuracy = common_accuracy(evaluation)
    pgd = sorted((name for name in accuracy if display_name(name).startswith("PGD")), key=len)
    pgd = [name for name in pgd if scenario_of(name) == "without_p"]
    rungs = {
        "Nat": accuracy.get(NATURAL),
        "FGSM": accuracy.get("fgsm"),
        "PGD": accuracy[pgd[-1]] if pgd else None,
        "AutoAttack": accuracy.get(AUTOATTACK),
        "With p": evaluation.accuracy_under_all(
            [name for name in accuracy if name.endswith(WITH_P)]
        ),
        "Adaptive": accuracy.get(ADAPTIVE),
    }
    return {name: value for name, value in rungs.items() if value is not None}


def adaptive_attacks(evaluation: Evaluation) -> tuple[dict[str, Any], ...]:
    """What each attack of the adaptive suite did, as its result file says."""
    if ADAPTIVE not in evaluation.results:
        return ()
    return tuple(evaluation.results[ADAPTIVE].record.get("attacks", ()))


def gate_of(evaluation: Evaluation) -> dict[str, float]:
    """How the part without a gradient behaves, as the adaptive attacks' result file says."""
    if ADAPTIVE not in evaluation.results:
        return {}
    gate = evaluation.results[ADAPTIVE].record.get("gate") or {}
    return {name: value for name, value in gate.items() if value is not None}
