"""The tables of a report as text, and what has to be said beneath them."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ancra_jax.report_data import Run
from ancra_jax.report_names import (
    NATURAL,
    WITH_P,
    attacks_of,
    display_name,
    evaluate_command,
    is_autoattack,
    scenario_of,
)
from ancra_jax.report_rows import FAMILIES, Row, SeedsRow, Spread, in_mean

MISSING = "—"
DAGGER = "†"
_SCENARIOS = {
    "without_p": "Without p: the attacker differentiates the final logits",
    "with_p": "With p: the attacker ascends the auxiliary heads too",
}


@dataclass(frozen=True)
class Table:
    """A table of Markdown cells.

    Attributes:
      title: above it.
      headers: of the columns.
      rows: as many cells each.
      numeric: how many columns, counted from the right, hold numbers.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    numeric: int

    def markdown(self) -> str:
        """Its source, in columns that a terminal shows straight."""
        lines = [
            [cell.replace("|", r"\|") for cell in cells] for cells in (self.headers, *self.rows)
        ]
        columns = list(zip(*lines, strict=True))
        widths = [max(3, *map(len, column)) for column in columns]
        numeric = [len(widths) - position <= self.numeric for position in range(len(widths))]
        rule = [
            "-" * (width - right) + ":" * right
            for width, right in zip(widths, numeric, strict=True)
        ]
        lines = [
            [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(cells, widths, numeric, strict=True)
            ]
            for cells in lines
        ]
        lines.insert(1, rule)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def accuracy_tables(rows: Sequence[Row], seeds_rows: Sequence[SeedsRow]) -> list[Table]:
    """The worst case first, then as in the paper: one table for each scenario there is."""
    # What the rows do not share gets a column.
    differing = [
        name
        for name in rows[0].setting
        if len({row.setting[name] for row in rows if row.setting[name]}) > 1
    ]
    tables = []
    for scenario, title in _SCENARIOS.items():
        attacks = attacks_of(scenario, {name for row in rows for name in row.accuracy}, FAMILIES)
        headers = [
            *("Model", "Seed", "Checkpoint"),
            *differing,
            *("Worst case [95 %]", "Nat"),
            *(display_name(name.removesuffix(WITH_P)) for name in attacks),
            "Mean",
        ]
        lines = [
            [
                *(row.label, str(row.seed), row.checkpoint),
                *_setting_cells(row, differing),
                *_cells(row, attacks, scenario),
            ]
            for row in rows
            if scenario == "without_p" or scenario in row.mean
        ]
        lines += [
            [
                *(seeds.label, f"{len(seeds.seeds)} seeds", seeds.checkpoint),
                *_setting_cells(seeds, differing),
                *_cells(seeds, attacks, scenario),
            ]
            for seeds in seeds_rows
            if scenario == "without_p" or scenario in seeds.mean
        ]
        if lines:
            tables.append(Table(title, headers, lines, numeric=len(attacks) + 3))
    return tables


def runs_table(rows: Sequence[Row]) -> Table:
    """What the rows are of, and where they come from."""
    lines = [
        [
            *(row.label, str(row.seed), f"{row.checkpoint}{_at_step(row)}"),
            *_setting_cells(row, row.setting),
            *("; ".join(row.provenance.get(name, [MISSING])) for name in ("device", "commit")),
            row.workdir,
        ]
        for row in rows
    ]
    headers = ["Model", "Seed", "Checkpoint", *rows[0].setting, "Device", "Commit", "Directory"]
    return Table("Runs", headers, lines, numeric=0)


def caption(rows: Sequence[Row]) -> str:
    """What all rows share, in a sentence."""
    shared = []
    for name, text in (("Data", "{}"), ("Examples", "{} examples"), ("Epsilon", "epsilon {}")):
        values = {row.setting[name] for row in rows if row.setting[name]}
        if len(values) == 1:
            shared.append(text.format(*values))
    return f"Accuracy in % on the test split: {', '.join(shared)}." if shared else "Accuracy in %."


def notes(runs: Sequence[Run], rows: Sequence[Row], seeds_rows: Sequence[SeedsRow]) -> list[str]:
    """What a reader must know of the numbers, one Markdown sentence or two each."""
    evaluated = [row for row in rows if row.accuracy]
    lines = []
    if evaluated:
        lines.append(
            "**Worst case**: the examples that are classified correctly on the natural image and "
            "under every attack that the model was evaluated with, with a 95 % Wilson interval. "
            "Mean: over the PGD, FGSM, C&W and AutoAttack of its table, as far as they are there."
        )
    attacks = {name for row in evaluated for name in row.accuracy}
    if any(scenario_of(name) == "with_p" for name in attacks):
        lines.append("With p and without, the final logits decide what is correct.")
        if any(map(is_autoattack, attacks)):
            lines[-1] += " AutoAttack sees them alone: it is the same number in both tables."
    lines += _attack_sets(evaluated)
    for row in evaluated:
        lines += [f"{DAGGER} {row.title}: {text}." for text in row.fooled_attacks.values()]
        lines += [f"{row.title}: {text}" for text in row.warnings]
    if len({row.comparable for row in evaluated}) > 1:
        lines.append(
            "**The rows are not of one evaluation**: they differ in data set, epsilon or number of "
            "examples (see the columns above and the runs below). Compare only those that agree."
        )
    for row in evaluated:
        if len(row.examples) > 1:
            counts = ", ".join(f"{display_name(k)} {v}" for k, v in row.num_examples.items())
            lines.append(
                f"{row.title}: the attacks saw different numbers of examples ({counts}); the worst "
                f"case and the ladder are of the first {row.examples[0]}."
            )
    lines += [
        f"Rows of several seeds: mean ± sample standard deviation over the seeds "
        f"{', '.join(map(str, seeds.seeds))} of {seeds.label} ({seeds.checkpoint} checkpoint)."
        for seeds in seeds_rows
    ]
    chosen = {row.label for row in _of(runs, rows, "test") if row.checkpoint.startswith("best")}
    lines += [
        f"{label}: its best checkpoint was chosen on the test split, so that its numbers are "
        "optimistic."
        for label in sorted(chosen)
    ]
    lines += [line for run in runs for evaluation in run.evaluations for line in evaluation.notes]
    return [*lines, *_missing(runs, rows)]


def _attack_sets(rows: Sequence[Row]) -> Iterable[str]:
    """Which attacks the worst cases are of, said once where they are the same."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.worst_case:
            sets.setdefault(row.worst_case.attacks, []).append(row.title)
    for attacks, titles in sets.items():
        whose = "All rows" if len(sets) == 1 else "; ".join(titles)
        yield f"{whose}: worst case over {', '.join(map(display_name, attacks))}."
    if sets and not any(is_autoattack(name) for attacks in sets for name in attacks):
        yield (
            "No row was evaluated with AutoAttack: a stronger attack can only lower the worst case."
        )


def _missing(runs: Sequence[Run], rows: Sequence[Row]) -> Iterable[str]:
    """What has not been computed yet, and the command that does."""
    for row in rows:
        command = evaluate_command(row.workdir, row.checkpoint)
        if not row.accuracy:
            yield f"{row.title}: not evaluated yet. Run `{command}`."
        elif row.worst_case is None:
            what = "the natural accuracy" if NATURAL not in row.accuracy else "attacks"
            yield f"{row.title}: no worst case without {what}. Run `{command}`."
    for run in runs:
        if not run.curves:
            yield f"{run.label} (seed {run.config.seed}): no training metrics in {run.workdir}."


def _of(runs: Sequence[Run], rows: Sequence[Row], selection_split: str) -> list[Row]:
    workdirs = {run.workdir for run in runs if run.config.data.selection_split == selection_split}
    return [row for row in rows if row.workdir in workdirs and row.accuracy]


def _setting_cells(row: Row | SeedsRow, names: Iterable[str]) -> list[str]:
    return [row.setting[name] or MISSING for name in names]


def _cells(row: Row | SeedsRow, attacks: Sequence[str], scenario: str) -> list[str]:
    fooled = {name for name in attacks if name in row.fooled_attacks}
    return [
        worst_cell(row),
        cell(row.accuracy.get(NATURAL)),
        *(cell(row.accuracy.get(name), name in fooled) for name in attacks),
        cell(row.mean.get(scenario), any(map(in_mean, fooled))),
    ]


def worst_cell(row: Row | SeedsRow) -> str:
    """The worst case with its interval, or its spread over seeds."""
    if row.worst_case is None:
        return MISSING
    if isinstance(row.worst_case, Spread):
        return f"**{cell(row.worst_case)}**"
    low, high = (100 * bound for bound in row.worst_case.interval)
    return f"**{cell(row.worst_case.accuracy)}** [{low:.2f}, {high:.2f}]"


def cell(value: float | Spread | None, fooled: bool = False) -> str:
    """A fraction in percent; marked where it is above the natural accuracy."""
    if value is None:
        return MISSING
    mark = DAGGER if fooled else ""
    if isinstance(value, Spread):
        return f"{100 * value.mean:.2f} ± {100 * value.std:.2f}{mark}"
    return f"{100 * value:.2f}{mark}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """``'31.20 ± 0.80'``: mean and sample standard deviation over seeds."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _at_step(row: Row) -> str:
    return "" if row.step is None else f", step {row.step}"
