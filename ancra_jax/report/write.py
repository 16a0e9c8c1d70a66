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
import pathlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from absl import flags
from markdown_it import MarkdownIt

from ancra_jax.config import local_path, path_list, to_mapping
from ancra_jax.errors import UsageError, printable
from ancra_jax.ops.files import write_atomically
from ancra_jax.report import figures as figures_lib
from ancra_jax.results.load import Run, load_runs
from ancra_jax.results.rows import Row, rows_of, seeds_rows
from ancra_jax.results.tables import build, caption, escaped, reading_notes, row_notes, tables_of
from ancra_jax.results.tables.columns import RUNS

SCHEMA = 1
_KEYS = {"stages": "rungs", "masks": "gate"}  # in report.json, where fields have other names
_IN_NO_FILE = ("config", "evaluation", "rows", "offsets", "losses")
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Robustness report</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; }
table { display: block; overflow-x: auto; border-collapse: collapse;
        font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #222; }
td { white-space: nowrap; }
td strong { color: #b22222; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; }
figcaption { color: #555; }
pre, code { font-size: .9em; background: #f5f5f5; }
pre { padding: .5rem; overflow-x: auto; }
</style></head><body>"""
# Names of methods and directories stand in the Markdown: none may become a link, image or HTML.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_MARKDOWN.disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])


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
        return "\n".join([_MARKDOWN.render(self.text), *map(_figure, self.pictures.values())])


def run(workdirs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] = "") -> Report:
    """Report on runs; write ``report.md``, ``report.html``, ``report.json`` and their figures.

    Args:
      workdirs: of runs; those without an evaluation get dashes.
      output: the directory for the files; created if need be. '': nothing is written.

    Raises:
      UsageError: a directory or a file in it cannot be used, or the output not be written.
    """
    named = [os.fspath(workdir) for workdir in workdirs]
    if not named or not all(named):
        raise UsageError(f"--workdirs={','.join(named)}: must name directories, DIR[,DIR...]")
    directories = [local_path(workdir, "--workdirs") for workdir in named]
    output = local_path(output, "--output") if output else ""
    runs = load_runs(directories)
    rows = rows_of(runs)
    seeds = seeds_rows(rows)
    notes = [*reading_notes(rows, seeds)]
    notes += [f"{escaped(row.title)}: {note}" for row in rows for note in row_notes(row)]
    notes += [
        escaped(f"{one.label} (seed {one.config.seed}): no training metrics in {one.workdir}.")
        for one in runs
        if not one.curves
    ]
    parts = [caption(rows)]
    for table in tables_of(rows, seeds):
        parts += [f"## {table.title}", table.markdown()]
    text = "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])
    report = Report(text, figures_lib.draw(runs, rows), runs, rows, output)
    if output:
        _write(report, {"rows": rows, "seeds": seeds, "notes": notes})
    return report


def _write(report: Report, content: dict[str, Any]) -> None:
    """Write a report's files, ``content`` and its origin as JSON."""
    directories = path_list([one.workdir for one in report.runs])
    origin = {
        "command": "ancra report "
        + shlex.join([f"--workdirs={directories}", f"--output={report.output}"]),
        "version": f"ancra-jax {metadata.version('ancra-jax')}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    before = f"# Robustness report\n\n{report.text}"
    commands = "\n".join(_block(command) for row in report.rows for command in row.evaluate)
    after = (
        f"## Runs\n\n{build('', RUNS, report.rows).markdown()}\n\nThe evaluations:\n\n{commands}"
        f"\n\nThis report, by {origin['version']} at {origin['created']}:\n\n"
        f"{_block(origin['command'])}"
    )
    pictures = report.pictures
    images = "\n\n".join(f"![{escaped(one.title)}]({name})" for name, one in pictures.items())
    files: dict[str, bytes | str] = {name: picture.png for name, picture in pictures.items()}
    files["report.md"] = f"{before}\n\n{images}\n\n{after}\n"
    files["report.html"] = _page(before, pictures.values(), after, report.runs)
    content = {"schema": SCHEMA, **origin, **content}
    files["report.json"] = json.dumps(content, indent=2, default=_plain) + "\n"
    directory = pathlib.Path(report.output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, one in files.items():
            write_atomically(directory / name, one)
    except OSError as error:
        raise UsageError(f"--output={directory}: cannot be written: {error.strerror}") from error


def _block(command: str) -> str:
    """Return a command as a line of a block of code; of a path with odd characters, escaped."""
    return f"    {printable(command)}"


def _page(
    before: str, pictures: Iterable[figures_lib.Picture], after: str, runs: Sequence[Run]
) -> str:
    """Return the whole page: Markdown, the figures, Markdown, and the runs' configurations."""
    parts = [_HEAD, _MARKDOWN.render(before), *map(_figure, pictures), _MARKDOWN.render(after)]
    for run in runs:
        title = html.escape(f"Configuration of {run.workdir}")
        text = html.escape(json.dumps(to_mapping(run.config), indent=2))
        parts.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    return "\n".join([*parts, "</body></html>\n"])


def _figure(picture: figures_lib.Picture) -> str:
    """Return a picture as HTML that needs no file."""
    title = html.escape(picture.title)
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass as JSON takes it, without what the evaluation's files hold."""
    return {
        _KEYS.get(name, name): one for name, one in vars(value).items() if name not in _IN_NO_FILE
    }


def define_flags() -> None:
    """Define the command's flags."""
    flags.DEFINE_list("workdirs", [], "Directories of runs of ancra_jax.train, DIR[,DIR...].")
    flags.DEFINE_string("output", None, "Directory that the report is written to.")


def main(arguments: flags.FlagValues) -> None:
    """Run the command."""
    local_path(arguments.output or "", "--output")
    print(run(arguments.workdirs, arguments.output))
    print(f"\nwritten to {arguments.output}: report.md, report.html, report.json and figures")
