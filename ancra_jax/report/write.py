"""Reports on runs: ``python -m ancra_jax.report --workdirs=DIR[,DIR...] --output=OUT``.

Writes tables from the claim to the worst case, the paper's tables, what adaptive attacks and
diagnostics found, training curves and figures for every model, as Markdown, as one HTML page and as
JSON. The report files of an earlier run are replaced; nothing else is touched.
"""

import datetime
import json
import pathlib
import shlex
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from absl import flags

from ancra_jax.errors import UsageError
from ancra_jax.ops.files import write_atomically
from ancra_jax.report import figures as figures_lib
from ancra_jax.report import html
from ancra_jax.results.load import load_runs
from ancra_jax.results.rows import Row, rows_of, seeds_rows
from ancra_jax.results.tables import build, caption, reading_notes, row_notes, tables_of
from ancra_jax.results.tables.columns import RUNS

SCHEMA = 1
_KEYS = {"stages": "rungs", "masks": "gate"}  # in report.json, where fields have other names
_IN_NO_FILE = ("config", "evaluation", "rows", "offsets", "losses")


def report(workdirs: Sequence[str], output: str) -> str:
    """Write ``report.md``, ``report.html``, ``report.json`` and their figures.

    Args:
      workdirs: of runs; those without an evaluation get dashes.
      output: the directory for the files; created if need be.

    Returns:
      The Markdown of the tables and notes.

    Raises:
      UsageError: a directory or a file in it cannot be used, or the output not be written.
    """
    if not workdirs or not all(workdirs):
        raise UsageError(f"--workdirs={','.join(workdirs)}: must name directories, DIR[,DIR...]")
    runs = load_runs(workdirs)
    rows = rows_of(runs)
    seeds = seeds_rows(rows)
    notes = [*reading_notes(rows, seeds)]
    notes += [f"{row.title}: {note}" for row in rows for note in row_notes(row)]
    notes += [
        f"{run.label} (seed {run.config.seed}): no training metrics in {run.workdir}."
        for run in runs
        if not run.curves
    ]
    origin = {
        "command": "python -m ancra_jax.report "
        + shlex.join([f"--workdirs={','.join(workdirs)}", f"--output={output}"]),
        "version": f"ancra-jax {metadata.version('ancra-jax')}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    parts = [caption(rows)]
    for table in tables_of(rows, seeds):
        parts += [f"## {table.title}", table.markdown()]
    text = "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])
    before = f"# Robustness report\n\n{text}"
    after = _provenance(rows, origin)
    figures = figures_lib.draw(runs, rows)
    images = "\n\n".join(f"![{figure.title}]({name})" for name, figure in figures.items())
    files: dict[str, bytes | str] = {name: figure.png for name, figure in figures.items()}
    files["report.md"] = f"{before}\n\n{images}\n\n{after}\n"
    files["report.html"] = html.page(before, figures.values(), after, runs)
    content = {"schema": SCHEMA, **origin, "rows": rows, "seeds": seeds, "notes": notes}
    files["report.json"] = json.dumps(content, indent=2, default=_plain) + "\n"
    try:
        pathlib.Path(output).mkdir(parents=True, exist_ok=True)
        for name, one in files.items():
            write_atomically(pathlib.Path(output) / name, one)
    except OSError as error:
        raise UsageError(f"--output={output}: cannot be written: {error.strerror}") from error
    return text


def _provenance(rows: Sequence[Row], origin: dict[str, str]) -> str:
    """Return what the rows are of, in Markdown, and the commands that compute them."""
    commands = "\n".join(f"    {command}" for row in rows for command in row.evaluate)
    return (
        f"## Runs\n\n{build('', RUNS, rows).markdown()}\n\nThe evaluations:\n\n{commands}\n\n"
        f"This report, by {origin['version']} at {origin['created']}:\n\n    {origin['command']}"
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
    if not arguments.workdirs:
        raise UsageError("--workdirs is missing: the directories of runs, DIR[,DIR...]")
    if not arguments.output:
        raise UsageError("--output is missing: the directory that the report is written to")
    print(report(arguments.workdirs, arguments.output))
    print(f"\nwritten to {arguments.output}: report.md, report.html, report.json and figures")
