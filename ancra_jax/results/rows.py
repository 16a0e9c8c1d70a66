"""Rows of tables as numbers: one for each checkpoint, one for several seeds of a method."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ancra_jax.config.schema import Config
from ancra_jax.results import names, statistics
from ancra_jax.results.load import Evaluation, Run, StoredDiagnosis, method_settings
from ancra_jax.results.statistics import Correct, Difference, Spread, WorstCase
from ancra_jax.results.store import evaluate_commands

WORST = "worst case"
"""Stands for an attack in comparisons: all attacks of a row together."""
PROVENANCE = ("seed", "data_fingerprint", "device", "commit", "versions", "created")


@dataclass(frozen=True)
class Row:
    """One checkpoint of one run, with all numbers that tables, figures and files give of it."""

    label: str  # the method
    workdir: str
    checkpoint: str  # 'best', 'last', or of an average ('best_ema')
    seed: int  # of the training
    data: str  # of an evaluated row with what sets it apart, 'CIFAR-10 (JPEG)'
    norm: str  # of the threat model
    epsilon: float  # on the [0, 1] pixel scale
    network: str
    reverse_attention: bool
    evaluate: tuple[str, ...]  # the commands that compute the row
    step: int | None  # of the checkpoint; None where it has not been evaluated
    num_examples: dict[str, int]  # by attack, how many of the first test examples it saw
    worst_case: WorstCase | None  # None also where there is but an upper bound
    # The same of a network with a defence that no attack made for it was run on.
    upper_bound: WorstCase | None
    accuracy: dict[str, float]  # natural and by attack, as fractions of the examples it saw
    mean: dict[str, float]  # by scenario, the paper's mean, where its four attacks were run
    fooled_attacks: dict[str, str]  # by attack that leaves more than natural accuracy, a warning
    warnings: tuple[str, ...]  # of the attacks themselves
    provenance: dict[str, list[str]]  # several entries where the attacks differ in it
    # As ``accuracy``, of the first examples that all attacks saw, as the worst case and ``stages``.
    common_accuracy: dict[str, float]
    # Under stronger and stronger attackers, from natural images to the adaptive attacks; 'With p'
    # is of the examples that no attack on the auxiliary heads breaks.
    stages: dict[str, float]
    adaptive: tuple[dict[str, Any], ...]  # what each adaptive attack did
    masks: dict[str, float]  # what the defence says of its part that passes no gradient
    diagnosis: StoredDiagnosis | None
    config: Config  # in no file
    evaluation: Evaluation  # what all of this is computed from; in no file

    @property
    def title(self) -> str:
        """What names the row in a sentence."""
        return f"{self.label} (seed {self.seed}, {self.checkpoint} checkpoint)"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed, as a row of several seeds has them."""
        return (self.seed,)

    @property
    def examples(self) -> tuple[int, ...]:
        """The different numbers of examples that attacks saw, the smallest first."""
        return tuple(sorted(set(self.num_examples.values())))

    @property
    def comparable(self) -> tuple:
        """What two rows must share for their numbers to be compared."""
        fingerprints = tuple(self.provenance.get("data_fingerprint", ()))
        return self.data, fingerprints, self.norm, self.epsilon, self.examples

    @property
    def setting(self) -> dict[str, str]:
        """What it was measured on, in words; the examples are '' where it was not evaluated."""
        return {
            "Network": self.network,
            "Data": self.data,
            "Epsilon": f"{self.norm} {epsilon_text(self.epsilon)}",
            "Examples": " / ".join(map(str, self.examples)),
        }


@dataclass(frozen=True)
class SeedsRow:
    """Several seeds of one method, evaluated in one way; a quantity that one lacks is left out."""

    label: str
    checkpoint: str
    setting: dict[str, str]
    seeds: tuple[int, ...]
    worst_case: Spread | None
    upper_bound: Spread | None
    accuracy: dict[str, Spread]
    examples: tuple[int, ...]
    mean: dict[str, Spread]
    fooled_attacks: tuple[str, ...]
    stages: dict[str, Spread]
    rows: tuple[Row, ...]  # one for each seed; in no file
    diagnosis: ClassVar[None] = None  # is of one network


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Return a row for each evaluated checkpoint, and an empty one for a run without any."""
    return [
        row_of(run.workdir, run.config, run.label, evaluation)
        for run in runs
        for evaluation in run.evaluations or [Evaluation("best")]
    ]


def row_of(workdir: str, config: Config, label: str, evaluation: Evaluation) -> Row:
    """Compute all numbers of an evaluation; an empty one makes an empty row."""
    correct = evaluation.correct
    records = evaluation.records
    first: dict[str, Any] = next(iter(records.values()), {"settings": {}})
    model = config.model
    accuracy = {name: float(one.mean()) for name, one in correct.items()}
    means = ((one, statistics.paper_mean(accuracy, one)) for one in names.SCENARIOS)
    count = min(map(len, correct.values()), default=0)
    shared = {name: one[:count] for name, one in correct.items()}
    adaptive = records.get(names.ADAPTIVE, {})
    worst_case = statistics.worst_case(correct)
    begun = adaptive.get("complete", bool(adaptive)) or adaptive.get("attacks")
    hidden = model.reverse_attention and not begun
    masks = adaptive.get("gate") or {}
    return Row(
        label=label,
        workdir=workdir,
        checkpoint=evaluation.checkpoint,
        seed=config.seed,
        data=first.get("data", config.data.name),
        norm=first["settings"].get("norm", config.evaluation.norm),
        epsilon=first["settings"].get("epsilon", config.evaluation.epsilon),
        network=f"{model.name}, width {model.width}" if model.width else model.name,
        reverse_attention=model.reverse_attention,
        evaluate=evaluate_commands(workdir, evaluation.checkpoint, records),
        step=first.get("step"),
        num_examples={name: len(one) for name, one in correct.items()},
        worst_case=None if hidden else worst_case,
        upper_bound=worst_case if hidden else None,
        accuracy=accuracy,
        mean={scenario: mean for scenario, mean in means if mean is not None},
        fooled_attacks={
            name: f"{name} leaves {value:.2%}, more than the natural accuracy {natural:.2%}: "
            "an attack that works cannot do that; the network hides its gradient from it"
            for name, (value, natural) in statistics.fooled(correct).items()
        },
        warnings=tuple(
            f"{names.display_name(name)}: {warning}"
            for name, record in records.items()
            for warning in record.get("warnings", ())
        ),
        provenance={
            name: sorted({_text(record.get(name)) for record in records.values()})
            for name in PROVENANCE
        },
        common_accuracy={name: float(one.mean()) for name, one in shared.items()},
        stages=_stages(shared),
        adaptive=tuple(adaptive.get("attacks", ())),
        masks={name: one for name, one in masks.items() if one is not None},
        diagnosis=evaluation.diagnosis,
        config=config,
        evaluation=evaluation,
    )


def group_seeds(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the evaluated rows in groups that differ only in the seed, one row for each seed."""
    groups: dict[tuple, dict[int, Row]] = {}
    for row in rows:
        if row.accuracy:
            key = (str(method_settings(row.config)), row.checkpoint, row.comparable)
            groups.setdefault(key, {}).setdefault(row.seed, row)
    return [list(group.values()) for group in groups.values()]


def seeds_rows(rows: Iterable[Row]) -> list[SeedsRow]:
    """Return a row for each method that was trained with several seeds and evaluated in one way."""
    return [seeds_row(group) for group in group_seeds(rows) if len(group) > 1]


def seeds_row(rows: Sequence[Row]) -> SeedsRow:
    """Return the spread of every number over rows that differ only in the seed."""
    # The worst of other attacks is another quantity, and so is their mean.
    alike = len({_attacks(row) for row in rows}) == 1
    worst_cases = [row.worst_case for row in rows if row.worst_case] * alike
    upper_bounds = [row.upper_bound for row in rows if row.upper_bound] * alike
    return SeedsRow(
        label=rows[0].label,
        checkpoint=rows[0].checkpoint,
        setting=rows[0].setting,
        seeds=tuple(row.seed for row in rows),
        worst_case=_spread(worst_cases),
        upper_bound=_spread(upper_bounds),
        accuracy=_spreads([row.accuracy for row in rows]),
        examples=rows[0].examples,
        mean=_spreads([row.mean for row in rows]) if alike else {},
        fooled_attacks=tuple(dict.fromkeys(name for row in rows for name in row.fooled_attacks)),
        stages=_spreads([row.stages for row in rows]),
        rows=tuple(rows),
    )


def paired_difference(
    rows: Mapping[int, Row], others: Mapping[int, Row], attack: str, other_attack: str
) -> Difference | None:
    """Return how much more rows have under an attack than others have under another.

    Both are by the seed of their training, and paired in the seeds that both have; of the examples,
    the first count that all attacks on all of them saw. None where there is no pair, or one lacks
    its attack. Either may be ``WORST``.
    """
    pairs = [
        (_correct(rows[seed]).get(attack), _correct(others[seed]).get(other_attack))
        for seed in sorted(rows.keys() & others.keys())
    ]
    found = [(one, two) for one, two in pairs if one is not None and two is not None]
    if not found or len(found) < len(pairs):
        return None
    count = min(len(one) for pair in found for one in pair)
    return statistics.difference([(one[:count], two[:count]) for one, two in found])


def _correct(row: Row) -> dict[str, Correct]:
    """Return which of a row's examples are right under each attack, and in the worst case.

    If a network has no auxiliary heads, the attack on its final logits counts as that on the heads.
    """
    results = row.evaluation.correct
    correct = {name: results[name][: row.examples[0]] for name in row.accuracy}
    if not row.reverse_attention:
        correct |= {f"{name}{names.HEADS}": one for name, one in correct.items()}
    return correct | {WORST: statistics.survivors(results)}


def _attacks(row: Row) -> tuple:
    """Return the attacks of a row, with the budget and the sources of the adaptive ones."""
    made = row.evaluation.records.get(names.ADAPTIVE, {}).get("settings", {})
    sources = sorted(one.get("method", "") for one in made.get("transfer_from", ()))
    return tuple(row.evaluation.correct), made.get("budget"), tuple(sources)


def epsilon_text(epsilon: float) -> str:
    """Return ``'8/255'`` where epsilon is such a fraction."""
    levels = epsilon * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-4 else f"{epsilon:.4g}"


def seeds_text(seeds: Iterable[int]) -> str:
    """Return ``'0-5, 8'``; no more than two seeds in a row are named one by one."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def _stages(correct: Mapping[str, Correct]) -> dict[str, float]:
    """Return the accuracy under stronger and stronger attackers, as far as they were run."""
    heads = {name: one for name, one in correct.items() if names.parse(name).heads}
    pgd = [name for name in correct if names.parse(name).family == "PGD" and name not in heads]
    left = {
        "Nat": correct.get(names.NATURAL),
        "FGSM": correct.get("fgsm"),
        "PGD": correct.get(max(pgd, key=lambda name: names.parse(name).steps, default="")),
        **{names.display_name(name): correct.get(name) for name in names.APGD},
        "AutoAttack": correct.get(names.AUTOATTACK),
        "With p": statistics.survivors(heads) if heads else None,
        "Adaptive": correct.get(names.ADAPTIVE),
    }
    return {name: float(one.mean()) for name, one in left.items() if one is not None}


def _spread(found: Sequence[WorstCase]) -> Spread | None:
    return statistics.spread([one.accuracy for one in found]) if found else None


def _spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: statistics.spread([row[name] for row in rows]) for name in shared}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return "unknown" if value is None else str(value)
