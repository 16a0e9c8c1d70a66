"""Reports on runs: ``python -m ancra_jax.report --workdirs=DIR[,DIR...] --output=OUT``.

Writes the ladder from the claim to the worst case, the paper's tables, what adaptive attacks and
diagnostics found, training curves and figures for every model, as Markdown, as one HTML page and as
JSON. The report files of an earlier run are replaced; nothing else is touched.
"""

import dataclasses
import datetime
import json
import pathlib
import shlex
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from absl import flags

from ancra_jax.errors import UsageError
from ancra_jax.report import figures as report_diagnosis_figures
from ancra_jax.report import figures as report_figures
from ancra_jax.report import html as report_html
from ancra_jax.report import notes as notes_lib
from ancra_jax.report import tables as report_ladder
from ancra_jax.report import tables as report_table
from ancra_jax.results.load import load_runs
from ancra_jax.results.rows import Row, SeedsRow, rows_of, seeds_rows
from ancra_jax.run.files import write_atomically

SCHEMA = 1


def report(workdirs: Sequence[str], output: str) -> str:
    """Writes ``report.md``, ``report.html``, ``report.json`` and their figures.

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
    several = seeds_rows(runs, rows)
    figures = report_figures.draw(runs, rows) | report_diagnosis_figures.draw_diagnoses(rows)
    arguments = [f"--workdirs={','.join(workdirs)}", f"--output={output}"]
    origin = {
        "command": f"python -m ancra_jax.report {shlex.join(arguments)}",
        "version": f"ancra-jax {metadata.version('ancra-jax')}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    caption = notes_lib.caption(rows)
    tables = report_table.accuracy_tables(rows, several)
    if any(row.rungs or row.diagnosis for row in rows):
        tables.insert(0, report_ladder.ladder_table(rows, several))
    for more in (
        report_ladder.adaptive_table,
        report_ladder.gate_table,
        report_ladder.checks_table,
    ):
        table = more(rows)
        tables += [table] if table else []
    origins = report_table.runs_table(rows)
    notes = [*notes_lib.notes(runs, rows, several), *notes_lib.ladder_notes(rows)]

    text = _markdown(caption, tables, notes)
    images = "\n\n".join(f"![{figure.title}]({name})" for name, figure in figures.items())
    commands = [f"    {command}" for row in rows for command in row.evaluate]
    files: dict[str, bytes | str] = {name: figure.png for name, figure in figures.items()}
    files["report.md"] = "\n\n".join(
        [
            f"# Robustness report\n\n{text}\n\n{images}\n\n## Runs\n\n{origins.markdown()}",
            "The evaluations:\n\n" + "\n".join(commands),
            f"This report, by {origin['version']} at {origin['created']}:\n\n"
            f"    {origin['command']}\n",
        ]
    )
    files["report.html"] = report_html.page(caption, tables, notes, figures, runs, rows, origin)
    files["report.json"] = json.dumps(_content(origin, rows, several, notes), indent=2) + "\n"
    _write(pathlib.Path(output), files)
    return text


def _markdown(caption: str, tables: Sequence[report_table.Table], notes: Sequence[str]) -> str:
    parts = [caption]
    for table in tables:
        parts += [f"## {table.title}", table.markdown()]
    parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def _content(
    origin: dict[str, str],
    rows: Sequence[Row],
    several: Sequence[SeedsRow],
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **origin,
        "rows": [_row_content(row) for row in rows],
        "seeds": [dataclasses.asdict(row) for row in several],
        "notes": list(notes),
    }


def _row_content(row: Row) -> dict[str, Any]:
    """All but the landscape, whose numbers stay in the evaluation's file."""
    content = dataclasses.asdict(row)
    if content["diagnosis"]:
        del content["diagnosis"]["offsets"], content["diagnosis"]["losses"]
    return content


def _write(output: pathlib.Path, files: dict[str, bytes | str]):
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(output / name, content)
    except OSError as error:
        raise UsageError(f"--output={output}: cannot be written: {error.strerror}") from error


def define_flags():
    """The command's flags."""
    flags.DEFINE_list("workdirs", [], "Directories of runs of ancra_jax.train, DIR[,DIR...].")
    flags.DEFINE_string("output", None, "Directory that the report is written to.")


def main(arguments: flags.FlagValues):
    """The command."""
    if not arguments.workdirs:
        raise UsageError("--workdirs is missing: the directories of runs, DIR[,DIR...]")
    if not arguments.output:
        raise UsageError("--output is missing: the directory that the report is written to")
    print(report(arguments.workdirs, arguments.output))
    print(f"\nwritten to {arguments.output}: report.md, report.html, report.json and figures")
