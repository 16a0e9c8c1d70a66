"""The paper's claims beside what was measured here."""

import json
import pathlib
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ancra_jax.paper.claims import TABLES, PaperTable
from ancra_jax.paper.plan import Options, Run, report_directory
from ancra_jax.report.markdown import DAGGER, MISSING, Table, mean_and_deviation
from ancra_jax.results.load import load_runs
from ancra_jax.results.names import NATURAL, WITH_P, display_name
from ancra_jax.results.rows import Row, rows_of
from ancra_jax.run.files import write_atomically

SCHEMA = 1
WORST_CASE = "worst_case"
REHEARSAL = (
    "**A rehearsal, no reproduction** (`--scale=tiny`): narrow networks, a part of the training "
    "data, few epochs, few test examples. The numbers measured here say nothing about the paper's."
)


@dataclass(frozen=True)
class ClaimRow:
    """A row of a table at one checkpoint.

    Attributes:
      title: as in the paper.
      data: the data set; as measured with what sets it apart, ``CIFAR-10 (JPEG)``.
      checkpoint: ``'best'`` or ``'last'``.
      claimed: by column, what the paper prints, in %; None where we know of nothing.
      measured: by column and for the worst case, in %, of each seed that has it.
      seeds: that were evaluated.
      num_examples: that were evaluated; several where the attacks or seeds differ in it.
    """

    title: str
    data: str
    checkpoint: str
    claimed: dict[str, float | None]
    measured: dict[str, list[float]]
    seeds: list[int]
    num_examples: list[int]


def write_claims(runs: Sequence[Run], options: Options) -> str:
    """Writes ``claims.md`` and ``claims.json`` beside the report.

    Args:
      runs: those of the table whose work directories hold a run.
      options: of the reproduction.

    Returns:
      The Markdown.
    """
    table = TABLES[options.table]
    rows = claim_rows(table, runs)
    text = markdown(table, rows, rehearsal=options.scale == "tiny")
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "table": options.table,
        "title": table.title,
        "rehearsal": options.scale == "tiny",
        "rows": [asdict(row) for row in rows],
    }
    output = pathlib.Path(report_directory(options))
    write_atomically(output / "claims.md", text + "\n")
    write_atomically(output / "claims.json", json.dumps(content, indent=2) + "\n")
    return text


def claim_rows(table: PaperTable, runs: Sequence[Run]) -> list[ClaimRow]:
    """The rows of a table with what was measured; the seeds of a row together.

    Raises:
      UsageError: a work directory cannot be read.
    """
    loaded = load_runs([run.workdir for run in runs])
    with_heads = {run.workdir: run.config.model.reverse_attention for run in loaded}
    reported = {(row.workdir, row.checkpoint): row for row in rows_of(loaded)}
    rows = []
    for row in dict.fromkeys(run.row.name for run in runs):
        seeds = [run for run in runs if run.row.name == row]
        first = seeds[0].row
        for checkpoint, claim in first.claims.items():
            found = {
                run.seed: (one, with_heads[run.workdir])
                for run in seeds
                if (one := reported.get((run.workdir, checkpoint))) and one.accuracy
            }
            values = {
                column: [_measured(one, column, heads) for one, heads in found.values()]
                for column in (*table.columns, WORST_CASE)
            }
            rows.append(
                ClaimRow(
                    title=first.title,
                    data=next((one.data for one, _ in found.values()), first.data),
                    checkpoint=checkpoint,
                    claimed=dict(
                        zip(table.columns, claim or [None] * len(table.columns), strict=True)
                    ),
                    measured={
                        column: [value for value in of_seeds if value is not None]
                        for column, of_seeds in values.items()
                    },
                    seeds=list(found),
                    num_examples=sorted({n for one, _ in found.values() for n in one.examples}),
                )
            )
    return rows


def markdown(table: PaperTable, rows: Sequence[ClaimRow], *, rehearsal: bool) -> str:
    """The table as Markdown, with what has to be said of it."""
    cells = [
        [
            *(row.title, row.data, row.checkpoint),
            *(_cell(row, column) for column in table.columns),
            _numbers(row.measured[WORST_CASE]),
        ]
        for row in rows
    ]
    headers = [
        *("Row", "Data", "Checkpoint"),
        *(display_name(column) for column in table.columns),
        "Worst case, here",
    ]
    counts = sorted({count for row in rows for count in row.num_examples})
    seeds = sorted({seed for row in rows for seed in row.seeds})
    notes = [
        "Each cell: **the paper's claim / measured here**, in %. A claim is what the paper prints; "
        f"{MISSING} where this project knows of none, or where nothing was measured.",
        "Worst case, here: the examples that are classified correctly on the natural image and "
        "under every attack of the evaluation; the paper has no such number.",
        f"{DAGGER} more than the natural accuracy beside it, which an attack that works cannot "
        "leave: such a number measures a hidden gradient.",
        "With p, a network without auxiliary heads is attacked as without p.",
    ]
    if seeds:
        notes.append(
            f"Measured on the first {' / '.join(map(str, counts))} test examples; training seeds "
            f"{', '.join(map(str, seeds))}, of several mean ± sample standard deviation."
        )
    if rehearsal:
        notes.insert(0, REHEARSAL)
    body = Table(table.title, headers, cells, numeric=len(table.columns) + 1)
    lines = "\n".join(f"- {note}" for note in notes)
    return f"## {table.title}: claimed and measured\n\n{body.markdown()}\n\n{lines}"


def _measured(row: Row, column: str, has_heads: bool) -> float | None:
    """In %; None where the row has no such attack."""
    if column == WORST_CASE:
        return 100 * row.worst_case.accuracy if row.worst_case else None
    if not has_heads:
        column = column.removesuffix(WITH_P)
    for attack, accuracy in row.accuracy.items():
        if re.sub(r"\d", "", attack) == column:
            return 100 * accuracy
    return None


def _cell(row: ClaimRow, column: str) -> str:
    claim, measured = row.claimed[column], row.measured[column]
    natural_claim, natural = row.claimed.get(NATURAL), row.measured.get(NATURAL)
    claimed = MISSING if claim is None else f"{claim:.2f}"
    if claim is not None and natural_claim is not None and claim > natural_claim:
        claimed += DAGGER
    text = _numbers(measured)
    if measured and natural and statistics.fmean(measured) > statistics.fmean(natural):
        text += DAGGER
    return f"{claimed} / {text}"


def _numbers(values: Sequence[float]) -> str:
    return mean_and_deviation(values) if values else MISSING
