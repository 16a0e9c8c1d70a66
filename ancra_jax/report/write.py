"""Reports on runs: ``ancra report --workdirs=DIR[,DIR...] --output=OUT``.

Writes tables from the claim to the worst case, the paper's tables, what adaptive attacks and
diagnostics found, training curves and figures for every model, as Markdown, as one HTML page and as
JSON. The report files of an earlier run are replaced; nothing else is touched.
"""

import base64
import datetime
import html
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from absl import flags

from ancra_jax.cli import options
from ancra_jax.config import directory_path, path_list
from ancra_jax.config.paths import as_list, path_text
from ancra_jax.errors import UsageError, printable
from ancra_jax.ops.files import as_path, check_writable, write_atomically
from ancra_jax.report import figures as figures_lib
from ancra_jax.report import page
from ancra_jax.report.page import MARKDOWN
from ancra_jax.results.examples import NO_DETAILS, load_details
from ancra_jax.results.load import Run
from ancra_jax.results.published import load_all
from ancra_jax.results.rows import Row, rows_of, seeds_rows
from ancra_jax.results.tables import (
    build,
    caption,
    escaped,
    not_run,
    reading_notes,
    row_notes,
    tables_of,
)
from ancra_jax.results.tables.columns import RUNS

SCHEMA = 1
_KEYS = {"stages": "rungs", "masks": "gate"}  # in report.json, where fields have other names
_IN_NO_FILE = ("config", "evaluation", "rows", "offsets", "losses")


@dataclass(frozen=True, repr=False)
class Report:
    """Tables, notes and figures on runs, which a notebook shows.

    Attributes:
      text: Markdown of the tables and notes.
      pictures: by file name.
      runs: their curves and evaluations.
      rows: the numbers, one for each checkpoint.
      output: the directory of its files; '' where none were written.
    """

    text: str
    pictures: dict[str, figures_lib.Picture]
    runs: list[Run]
    rows: list[Row]
    output: str = ""

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """Return what a notebook shows, without style and configurations."""
        return "\n".join([MARKDOWN.render(self.text), *map(_figure, self.pictures.values())])


def run(
    workdirs: Sequence[str | os.PathLike[str]] | os.PathLike[str],
    output: str | os.PathLike[str] = "",
) -> Report:
    """Report on runs; write ``report.md``, ``report.html``, ``report.json`` and their figures.

    Args:
      workdirs: directories of runs, or one; those without an evaluation get dashes. One of
        published rows (``results`` of this project) stands for all of them.
      output: directory for the files; created if need be. In Python '' writes nothing.

    Raises:
      UsageError: a directory or a file in it cannot be used, or the output not be written.
    """
    named = [path_text(one, "--workdirs", remote=True) for one in as_list(workdirs, "--workdirs")]
    if not named or not all(named):
        raise UsageError(f"--workdirs={','.join(named)}: must name directories, DIR[,DIR...]")
    directories = [directory_path(workdir, "--workdirs") for workdir in named]
    output = directory_path(output, "--output") if output else ""
    runs = load_all(directories)
    found = [(row, run.published) for run in runs for row in rows_of([run])]
    rows = [row for row, _ in found]
    seeds = seeds_rows(rows)
    own = [row for row, published in found if not published]
    missing = [*not_run(own, features=True), *_unfinished(runs)]
    reading = [*reading_notes(rows, seeds)]
    of_rows = [f"{escaped(row.title)}: {note}" for row in rows for note in row_notes(row)]
    notes = [*reading, *of_rows, *missing]
    parts = [caption(rows)]
    for table in tables_of(rows, seeds):
        parts += [f"## {table.title}", table.markdown()]
    text = "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])
    report = Report(text, figures_lib.draw(runs, rows), runs, rows, output)
    if output:
        content = {"rows": rows, "seeds": seeds, "notes": notes}
        command = f"--workdirs={path_list(directories)}", f"--output={output}"
        origin = {
            "command": f"ancra report {shlex.join(command)}",
            "version": f"ancra-jax {metadata.version('ancra-jax')}",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        details = [
            NO_DETAILS if published else load_details(row.workdir, row.evaluation)
            for row, published in found
        ]
        html_page = page.render(
            report,
            seeds,
            details,
            notes=reading,
            row_notes=of_rows,
            missing=missing,
            origin=origin,
        )
        _write(report, content, origin, html_page)
    return report


def _unfinished(runs: Sequence[Run]) -> Iterable[str]:
    """Yield, as Markdown, what is missing of the training."""
    for run in runs:
        epoch = max((one["epoch"] for one in run.curves), default=0)
        name = escaped(f"{run.label} (seed {run.config.seed})")
        if not run.curves and not run.published:
            yield f"**No training metrics**: {name} in {escaped(run.workdir)}."
        elif run.curves and epoch < run.config.epochs and not run.config.max_steps:
            yield (
                f"**Training has not ended**: {name} is at epoch {epoch:.4g} of "
                f"{run.config.epochs}. The command that started it continues."
            )


def _write(report: Report, content: dict[str, Any], origin: dict[str, str], html_page: str) -> None:
    """Write a report's files, ``content`` and its origin as JSON."""
    commands = "\n".join(_block(command) for row in report.rows for command in row.evaluate)
    pictures = report.pictures
    created = f"{origin['version']} at {origin['created']}"
    parts = [
        f"# Robustness report\n\n{report.text}",
        "\n\n".join(f"![{escaped(one.title)}]({name})" for name, one in pictures.items()),
        f"## Runs\n\n{build('', RUNS, report.rows).markdown()}\n\nThe evaluations:\n\n{commands}",
        f"This report, by {created}:\n\n{_block(origin['command'])}",
    ]
    files = {name: picture.svg for name, picture in pictures.items()}
    files["report.md"] = "\n\n".join(filter(None, parts)) + "\n"
    files["report.html"] = html_page
    content = {"schema": SCHEMA, **origin, **content}
    files["report.json"] = json.dumps(content, indent=2, default=_plain) + "\n"
    directory = as_path(report.output)
    check_writable(directory, f"--output={directory}")
    for name, one in files.items():
        write_atomically(directory / name, one)


def _block(command: str) -> str:
    """Return a command as a line of a block of code; of a path with odd characters, escaped."""
    return f"    {printable(command)}"


def _figure(picture: figures_lib.Picture) -> str:
    """Return a picture as HTML that needs no file."""
    title = html.escape(picture.title)
    data = base64.b64encode(picture.svg.encode()).decode()
    return (
        f'<figure><img alt="{title}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass as JSON takes it, without what the evaluation's files hold."""
    return {
        _KEYS.get(name, name): one for name, one in vars(value).items() if name not in _IN_NO_FILE
    }


def define_flags() -> None:
    """Define the command's flags."""
    options.define(run)


def main(arguments: flags.FlagValues) -> None:
    """Run the command."""
    directory_path(arguments.output or "", "--output")
    print(run(**options.read(run, arguments)))
    print(f"\nwritten to {arguments.output}: report.md, report.html, report.json and figures")
