"""A table as Markdown, and how numbers are written in it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ancra_jax.results.rows import Row, SeedsRow
from ancra_jax.results.statistics import Spread

MISSING = "—"
DAGGER = "†"


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
