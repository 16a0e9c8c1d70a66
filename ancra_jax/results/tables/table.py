"""A table: how its columns make it from rows, how it is written, and how numbers are."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.markdown import Markdown

from ancra_jax.errors import printable
from ancra_jax.results.statistics import Difference, Spread

MISSING = "—"
DAGGER = "†"
Value = str | int | float | Spread | None


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    header: str
    cell: Callable[[Any], Value]  # what it says of a row; see ``text``
    # 'filled': only if some row has a cell that is not missing; 'differing': only if two differ.
    shown: Literal["always", "filled", "differing"] = "filled"
    numeric: bool = True  # numbers stand on the right


TextColumn = functools.partial(Column, numeric=False)


@dataclass(frozen=True)
class Table:
    """A table of Markdown cells."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    numeric: list[bool]  # which columns hold numbers

    def transposed(self) -> "Table":
        """Return the table with its first column as headers, and its headers as first column."""
        headers, *rows = zip(self.headers, *self.rows, strict=True)
        numeric = [False, *[True] * (len(headers) - 1)]
        return Table(self.title, list(headers), list(map(list, rows)), numeric)

    def markdown(self) -> str:
        """Return its Markdown source, in columns that a terminal shows straight."""
        columns = []
        for right, *cells in zip(self.numeric, self.headers, *self.rows, strict=True):
            width = max(3, *map(len, cells))
            head, *cells = [cell.rjust(width) if right else cell.ljust(width) for cell in cells]
            rule = "-" * (width - 1) + (":" if right else "-")
            columns.append([head, rule, *cells])
        return "\n".join(f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True))

    def rich(self) -> Markdown:
        """Return what a ``rich.console.Console`` prints as the table."""
        return Markdown(f"**{self.title}**\n\n{self.markdown()}")


def build(title: str, columns: Sequence[Column], rows: Sequence[Any]) -> Table:
    """Return the table of rows, with those of the columns that are shown."""
    shown = []
    for column in columns:
        cells = [text(column.cell(row)) for row in rows]
        different = set(cells) - {MISSING}
        if len(different) >= {"always": 0, "filled": 1, "differing": 2}[column.shown]:
            shown.append((column, cells))
    return Table(
        title,
        [column.header and text(column.header) for column, _ in shown],
        [list(cells) for cells in zip(*(cells for _, cells in shown), strict=True)],
        [column.numeric for column, _ in shown],
    )


class Markup(str):
    """Markdown that the code has written, which is not escaped as other text is."""


def escaped(words: str) -> str:
    """Return Markdown that shows text as it is, in one line, and formats and links nothing."""
    # Underscores within a word are only themselves.
    special = (
        r"([\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|(?<=\w):(?=//)|(?<=www)\.|^#|^[-+](?=\s))"
    )
    return re.sub(special, r"\\\1", printable(words))


def code(words: str) -> str:
    """Return Markdown that shows a command as it is."""
    words = printable(words)
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    return f"{fence} {words} {fence}" if len(fence) > 1 else f"`{words}`"


def text(value: Value, mark: str = "") -> str:
    """Return a fraction in percent, over seeds with its deviation; counts as they are; Markdown.

    None and '' become ``MISSING``; a mark is put behind everything else.
    """
    if value is None or value == "":
        return MISSING
    if isinstance(value, Spread):
        return f"{100 * value.mean:.2f} ± {100 * value.std:.2f}{mark}"
    if isinstance(value, str) and not isinstance(value, Markup):
        value = escaped(value)
    return f"{100 * value:.2f}{mark}" if isinstance(value, float) else f"{value}{mark}"


def with_interval(value: float, low: float, high: float, form: str, scale: int = 1) -> Markup:
    """Return a number with its interval, all times ``scale``, in a format such as ``'.2f'``."""
    number, start, end = (f"{scale * one:{form}}" for one in (value, low, high))
    return Markup(f"{number} [{start}, {end}]")


def points(found: Difference) -> str:
    """Return a difference in points of 100, with its 95 % interval."""
    return with_interval(found.mean, found.low, found.high, "+.2f", 100)


def compared(found: Difference) -> Markup:
    """Return `points`, bold where several seeds show a difference."""
    return Markup(f"**{points(found)}**" if found.sign else points(found))
