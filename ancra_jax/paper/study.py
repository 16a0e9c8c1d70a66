"""Rows of a study beside what they are compared with, paired by training seed and test image."""

import functools
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ancra_jax.paper.claims import CONTROLS, STUDIES
from ancra_jax.paper.measured import REHEARSAL, left_out, write_pages
from ancra_jax.paper.runs import Run
from ancra_jax.results.load import Selected, load_runs, selected
from ancra_jax.results.names import NATURAL
from ancra_jax.results.rows import WORST, Row, paired_difference, rows_of, seeds_text
from ancra_jax.results.statistics import RESAMPLES, Difference, Spread, spread
from ancra_jax.results.tables import Column, Markup, TextColumn, build, compared

_HOW = (
    "Accuracy of the best checkpoint in %, mean ± sample standard deviation over training seeds. "
    "Worst case: right on the natural image and under every attack of the row's evaluation, which "
    "for a network with reverse attention has attacks that another cannot be given.",
    "Differences in points of 100, with 95 % intervals: rows are paired by training seed and test "
    "image, in the seeds that both have, and seeds and images resampled independently, "
    f"{RESAMPLES:,} times; bold where the interval of three seeds or more is without 0. Of one "
    "seed the interval is of the images alone, and says nothing of another training.",
    "The best control is the one whose worst case here is the highest. That it was chosen by these "
    "very numbers favours it.",
    "No correction is made for looking at many rows.",
)
_HELD_OUT = (
    "Accuracy of the best checkpoint in % on training images that were held out, natural and under "
    "the PGD that chose it (`selection` in the configuration), mean ± sample standard deviation "
    "over training seeds. No test image is looked at.",
    "PGD flatters what hides a gradient; the worst case of `ancra paper variants` is what counts.",
)
_IDENTITY = (
    TextColumn("Row", lambda row: row.title, "always"),
    TextColumn("Seeds", lambda row: seeds_text(row.seeds), "always"),
)

Content = tuple[Sequence[Column], Sequence[Any], Sequence[str], dict[str, Any]]
"""Columns and rows of a table, notes beneath it, and what its JSON has beside the rows."""


@dataclass(frozen=True)
class StudyRow:
    """A row of a study, with all seeds that were evaluated."""

    title: str
    method: str  # the argument of the configuration
    seeds: list[int]
    num_examples: int
    natural: Spread
    worst_case: Spread
    differences: dict[str, dict[str, Difference]]  # by method it is compared with, then by quantity


@dataclass(frozen=True)
class CoefficientRow:
    """A coefficient, with the best checkpoints of all seeds that were trained."""

    title: str
    seeds: list[int]
    natural: Spread  # on the selection split, like the next
    robust: Spread
    chosen: bool  # it is the best of its method's


def write_study(runs: Sequence[Run], options: Namespace, unfinished: Sequence[str] = ()) -> str:
    """Write study.md and study.json beside the report on these runs, and return the Markdown.

    ``unfinished`` names runs that are not among them, as their attacks have not all ended.
    """
    table = STUDIES[options.table]
    tell = _worst_cases if any(row.claims for row in table.rows) else _coefficients
    columns, rows, notes, content = tell(runs)
    notes = (*notes, *left_out(unfinished))
    parts = [f"## {table.title}", *([REHEARSAL] if options.scale == "tiny" else [])]
    parts += [build("", columns, rows).markdown(), "\n".join(f"- {note}" for note in notes)]
    content = content | {"rows": [asdict(row) for row in rows]}
    return write_pages(options, "study", table.title, "\n\n".join(parts), content)


def _worst_cases(runs: Sequence[Run]) -> Content:
    best, rows = study_rows(runs)
    columns = [
        *_IDENTITY,
        Column("Natural", lambda row: _accuracy(row, row.natural), "always"),
        Column("Worst case", lambda row: _accuracy(row, row.worst_case), "always"),
        *(
            Column(f"{quantity} − {other}", functools.partial(_cell, other=other, of=quantity))
            for other in dict.fromkeys((CONTROLS[0], best))
            for quantity in (WORST, NATURAL)
        ),
    ]
    counts = " / ".join(map(str, sorted({row.num_examples for row in rows})))
    measured = f"Measured on the first {counts} test examples. Best control: {best or 'none'}."
    return columns, rows, (*_HOW, measured), {"best_control": best}


def _coefficients(runs: Sequence[Run]) -> Content:
    columns = [
        *_IDENTITY,
        Column("Natural", lambda row: _accuracy(row, row.natural), "always"),
        Column("Robust", lambda row: _accuracy(row, row.robust), "always"),
        TextColumn("Best of its method", lambda row: "yes" if row.chosen else ""),
    ]
    return columns, coefficient_rows(runs), _HELD_OUT, {}


def coefficient_rows(runs: Sequence[Run]) -> list[CoefficientRow]:
    """Return the rows that have a best checkpoint; of equally good ones the first is chosen."""
    found: dict[str, dict[int, Selected]] = {}
    for run, loaded in zip(runs, load_runs([run.workdir for run in runs]), strict=True):
        if best := selected(loaded.curves).get("best"):
            found.setdefault(run.row.title, {})[run.seed] = best
    robust = {method: spread([one.robust for one in of.values()]) for method, of in found.items()}
    best_of: dict[str, str] = {}
    for method in sorted(found, key=lambda one: -robust[one].mean):
        best_of.setdefault(method.partition(",")[0], method)
    return [
        CoefficientRow(
            method,
            sorted(seeds),
            spread([one.natural for one in seeds.values()]),
            robust[method],
            best_of[method.partition(",")[0]] == method,
        )
        for method, seeds in found.items()
    ]


def study_rows(runs: Sequence[Run]) -> tuple[str, list[StudyRow]]:
    """Return the best control, and the rows that have a worst case, in the order of the runs."""
    names = {run.workdir: run.row.method for run in runs}
    titles = {run.row.method: run.row.title for run in runs}
    found: dict[str, dict[int, Row]] = {method: {} for method in titles}
    for row in rows_of(load_runs(list(names))):
        if row.worst_case and row.checkpoint == "best":
            found[names[row.workdir]][row.seed] = row
    found = {method: seeds for method, seeds in found.items() if seeds}
    worst = {
        method: spread([row.worst_case.accuracy for row in seeds.values() if row.worst_case])
        for method, seeds in found.items()
    }
    controls = [method for method in found if method in CONTROLS]
    best = max(controls, key=lambda method: worst[method].mean, default="")
    rows = []
    for method, seeds in found.items():
        others = [one for one in dict.fromkeys((CONTROLS[0], best)) if one in found]
        differences = {
            other: {
                of: one
                for of in (WORST, NATURAL)
                if (one := paired_difference(seeds, found[other], of, of))
            }
            for other in others
            if other != method
        }
        rows.append(
            StudyRow(
                title=titles[method],
                method=method,
                seeds=sorted(seeds),
                num_examples=min(row.examples[0] for row in seeds.values()),
                natural=spread([row.common_accuracy[NATURAL] for row in seeds.values()]),
                worst_case=worst[method],
                differences=differences,
            )
        )
    return best, rows


def _accuracy(row: StudyRow | CoefficientRow, found: Spread) -> Spread | float:
    return found if len(row.seeds) > 1 else found.mean


def _cell(row: StudyRow, other: str, of: str) -> Markup | None:
    found = row.differences.get(other, {}).get(of)
    return None if found is None else compared(found)
