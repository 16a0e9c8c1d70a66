"""The paper's claims beside what was measured here."""

import functools
import json
import re
import statistics
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ancra_jax.ops.files import write_atomically
from ancra_jax.paper.claims import FINAL as COLUMNS
from ancra_jax.paper.claims import MEAN, TABLES, PaperTable, TableRow
from ancra_jax.paper.runs import Run
from ancra_jax.results.load import load_runs
from ancra_jax.results.names import FINAL, HEADS, NATURAL, RELEASED, display_name, parse
from ancra_jax.results.rows import Row, rows_of
from ancra_jax.results.statistics import spread
from ancra_jax.results.tables.notes import RELEASED_NOTE
from ancra_jax.results.tables.table import (
    DAGGER,
    MISSING,
    Column,
    Markup,
    TextColumn,
    build,
    code,
    text,
)

WORST_CASE = "worst_case"
WITHOUT_CLAIM = "Rows without a claim: the paper has none, or this project does not know it"
REHEARSAL = (
    "**A rehearsal, no reproduction** (`--scale=tiny`): narrow networks, a part of the training "
    "data, few epochs, few test examples. The numbers measured here say nothing about the paper's."
)
ABOVE = (
    f"{DAGGER} more than the natural accuracy beside it, which an attack that works cannot leave: "
    "such a number measures a hidden gradient."
)
ROUNDING = 0.0051  # of a mean that is printed with two decimals
_NOTES = (
    "Each cell: **the paper's claim / measured here**, in %, of several seeds mean ± sample "
    f"standard deviation. A claim is what the paper prints; {MISSING} where this project knows of "
    "none, or where nothing was measured.",
    "Mean: over PGD, FGSM, C&W and AutoAttack.",
    "Worst case, here: the examples that are classified correctly on the natural image and under "
    "every attack of the evaluation; the paper has no such number.",
    "Of a network without auxiliary heads, the attack on its final logits stands for one on them.",
)


@dataclass(frozen=True)
class ClaimRow:
    """A row of a table at one checkpoint."""

    title: str  # as in the paper
    run: str  # the name of the run that computes it here, 'cifar10/trades_awp'
    data: str  # as measured, with what sets it apart, 'CIFAR-10 (JPEG)'
    checkpoint: str
    claimed: dict[str, float | None]  # by column, in %; None where we know of no claim
    # By column, in %, of each seed; so for the worst case, and for attacks of the authors' code.
    measured: dict[str, list[float]]
    seeds: list[int]  # that were evaluated
    num_examples: list[int]  # several where the attacks or seeds differ in it

    @property
    def has_claim(self) -> bool:
        """Whether this project knows of a number that the paper prints."""
        return any(claim is not None for claim in self.claimed.values())


def column_of(attack: str) -> str:
    """Return the column of the paper's tables for an attack, which has no number of steps."""
    return re.sub(r"\d", "", attack)


def column_title(column: str) -> str:
    """Return what tables call a column of the paper's tables."""
    return "Mean" if column == MEAN else display_name(column)


def claim_lines(table: PaperTable, row: TableRow) -> list[str]:
    """Return in words what the paper claims of a row, a line for each checkpoint that has one."""
    lines = []
    for checkpoint, claim in row.claims.items():
        cells = [
            f"{column_title(name)} {_marked([claim[name]], claim.get(NATURAL))}"
            for name in table.columns
            if name in claim
        ]
        if cells:
            lines.append(f"claimed, {checkpoint} checkpoint: {', '.join(cells)}")
    return lines


def notes_of(table: PaperTable) -> list[str]:
    """Return what is to be said of a table's claims, before anything is measured."""
    notes = [ABOVE, *table.notes]
    for row in table.rows:
        for claim in row.claims.values():
            mean = statistics.fmean(claim.get(name, 0.0) for name in COLUMNS[1:])
            if MEAN in claim and abs(mean - claim[MEAN]) > ROUNDING:
                notes.append(
                    f"{row.title}, {row.data}: the mean of the paper's four numbers is {mean:.2f}; "
                    f"it prints {claim[MEAN]:.2f}."
                )
    return notes


def write_claims(runs: Sequence[Run], options: Namespace, unfinished: Sequence[str] = ()) -> str:
    """Write claims.md and claims.json beside the report on these runs, and return the Markdown.

    ``unfinished`` names runs that are not among them, as their attacks have not all ended.
    """
    table = TABLES[options.table]
    rows = claim_rows(table, runs)
    page = markdown(table, rows, rehearsal=options.scale == "tiny")
    page = "\n".join([page, *(f"- {note}" for note in left_out(unfinished))])
    return write_pages(
        options, "claims", table.title, page, {"rows": [asdict(row) for row in rows]}
    )


def left_out(unfinished: Sequence[str]) -> list[str]:
    """Return a note on runs that are not in a table, if there are any."""
    if not unfinished:
        return []
    return [f"Left out, as not all of their commands have ended: {'; '.join(unfinished)}."]


def write_pages(
    options: Namespace, name: str, title: str, page: str, content: Mapping[str, Any]
) -> str:
    """Write a table's Markdown and, as JSON, its content beside the report; return the Markdown."""
    about = {"table": options.table, "title": title, "rehearsal": options.scale == "tiny"}
    text = json.dumps({"schema": 1, **about, **content}, indent=2)
    write_atomically(options.report / f"{name}.md", f"{page}\n")
    write_atomically(options.report / f"{name}.json", f"{text}\n")
    return page


def claim_rows(table: PaperTable, runs: Sequence[Run]) -> list[ClaimRow]:
    """Return the rows of a table with what was measured; the seeds of a row together."""
    names = {run.workdir: run.row.name for run in runs}
    evaluated = [row for row in rows_of(load_runs(list(names))) if row.accuracy]
    rows = []
    for row in {run.row.name: run.row for run in runs}.values():
        for checkpoint, claim in row.claims.items():
            target = (row.name, checkpoint)
            found = [one for one in evaluated if (names[one.workdir], one.checkpoint) == target]
            worst_cases = [100 * one.worst_case.accuracy for one in found if one.worst_case]
            measured = {one: _accuracies(one, found) for one in table.columns}
            for one in (f"{column}{RELEASED}" for column in table.columns):
                if accuracies := _accuracies(one, found):  # most columns have none
                    measured[one] = accuracies
            claim_row = ClaimRow(
                title=row.title,
                run=row.name,
                data=found[0].data if found else row.data,
                checkpoint=checkpoint,
                claimed={column: claim.get(column) for column in table.columns},
                measured=measured | {WORST_CASE: worst_cases},
                seeds=[one.seed for one in found],
                num_examples=sorted({count for one in found for count in one.examples}),
            )
            rows.append(claim_row)
    return rows


def _accuracies(column: str, rows: Sequence[Row]) -> list[float]:
    """Return the accuracy of rows in a column of the paper's tables, in %, where they have it.

    If an attack was run with several numbers of steps, the largest number counts. If a network has
    no auxiliary heads, the attack on its final logits counts as the attack on the heads.
    """
    if column == MEAN:
        return [100 * row.mean[FINAL] for row in rows if FINAL in row.mean]
    found = []
    for row in rows:
        wanted = column if row.reverse_attention else column.removesuffix(HEADS)
        names = [name for name in row.accuracy if column_of(name) == wanted]
        if names:
            found.append(100 * row.accuracy[max(names, key=lambda name: parse(name).steps)])
    return found


def markdown(table: PaperTable, rows: Sequence[ClaimRow], *, rehearsal: bool) -> str:
    """Return the table as Markdown, with what has to be said of it."""
    columns = [
        TextColumn("Row", lambda row: row.title, "always"),
        TextColumn("Here", lambda row: Markup(code(row.run)), "always"),
        TextColumn("Data", lambda row: row.data, "always"),
        TextColumn("Checkpoint", lambda row: row.checkpoint, "always"),
        *(
            Column(column_title(name), functools.partial(_cell, column=name), "always")
            for column in table.columns
            for name in (column, f"{column}{RELEASED}")
            if name == column or any(name in row.measured for row in rows)
        ),
        Column("Worst case, here", lambda row: _percent(row.measured[WORST_CASE]), "always"),
    ]
    counts = sorted({count for row in rows for count in row.num_examples})
    seeds = sorted({seed for row in rows for seed in row.seeds})
    notes = [*([REHEARSAL] if rehearsal else []), *_NOTES, *notes_of(table)]
    if any(name.endswith(RELEASED) for row in rows for name in row.measured):
        notes.append(RELEASED_NOTE)
    if seeds:
        notes.append(
            f"Measured on the first {' / '.join(map(str, counts))} test examples; training seeds "
            f"{', '.join(map(str, seeds))}."
        )
    lines = "\n".join(f"- {note}" for note in notes)
    parts = [f"## {table.title}: claimed and measured"]
    further = [row for row in rows if not row.has_claim]
    if claimed := [row for row in rows if row.has_claim]:
        parts.append(build("", columns, claimed).markdown())
    if further:
        parts.append(f"### {WITHOUT_CLAIM}\n\n{build('', columns, further).markdown()}")
    return "\n\n".join([*parts, lines])


def _cell(row: ClaimRow, column: str) -> str:
    """Return the claim and what was measured, perhaps by the authors' code."""
    claim, found = row.claimed[column.removesuffix(RELEASED)], row.measured.get(column, [])
    natural = row.measured.get(NATURAL)
    claimed = _marked([] if claim is None else [claim], row.claimed.get(NATURAL))
    return f"{claimed} / {_marked(found, statistics.fmean(natural) if natural else None)}"


def _marked(values: Sequence[float], natural: float | None) -> str:
    """Return the mean of numbers in %, marked where it is above the natural accuracy."""
    above = values and natural is not None and statistics.fmean(values) > natural
    return _percent(values, DAGGER if above else "")


def _percent(values: Sequence[float], mark: str = "") -> str:
    """Return the mean of numbers in %, of several with their deviation."""
    found = spread([value / 100 for value in values]) if values else None
    return text(found.mean if found and len(values) == 1 else found, mark)
