"""Reports on runs: ``ancra report --workdirs=DIR[,DIR...] --output=OUT``.

Writes tables from the claim to the worst case, the paper's tables, what adaptive attacks and
diagnostics found, training curves and figures for every model, as Markdown, as one HTML page and as
JSON. The report files of an earlier run are replaced; nothing else is touched.
"""

import base64
import datetime
import html
import json
import pathlib
import shlex
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from absl import flags
from markdown_it import MarkdownIt

from ancra_jax.config import local_path, path_list, to_mapping
from ancra_jax.errors import UsageError, printable
from ancra_jax.ops.files import write_atomically
from ancra_jax.report import figures as figures_lib
from ancra_jax.results.load import Run, load_runs
from ancra_jax.results.rows import rows_of, seeds_rows
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
    workdirs = [local_path(workdir, "--workdirs") for workdir in workdirs]
    output = local_path(output, "--output")
    runs = load_runs(workdirs)
    rows = rows_of(runs)
    seeds = seeds_rows(rows)
    notes = [*reading_notes(rows, seeds)]
    notes += [f"{escaped(row.title)}: {note}" for row in rows for note in row_notes(row)]
    notes += [
        escaped(f"{run.label} (seed {run.config.seed}): no training metrics in {run.workdir}.")
        for run in runs
        if not run.curves
    ]
    origin = {
        "command": "ancra report "
        + shlex.join([f"--workdirs={path_list(workdirs)}", f"--output={output}"]),
        "version": f"ancra-jax {metadata.version('ancra-jax')}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    parts = [caption(rows)]
    for table in tables_of(rows, seeds):
        parts += [f"## {table.title}", table.markdown()]
    text = "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])
    before = f"# Robustness report\n\n{text}"
    commands = "\n".join(_block(command) for row in rows for command in row.evaluate)
    after = (
        f"## Runs\n\n{build('', RUNS, rows).markdown()}\n\nThe evaluations:\n\n{commands}\n\n"
        f"This report, by {origin['version']} at {origin['created']}:\n\n"
        f"{_block(origin['command'])}"
    )
    figures = figures_lib.draw(runs, rows)
    images = "\n\n".join(f"![{escaped(figure.title)}]({name})" for name, figure in figures.items())
    files: dict[str, bytes | str] = {name: figure.png for name, figure in figures.items()}
    files["report.md"] = f"{before}\n\n{images}\n\n{after}\n"
    files["report.html"] = _page(before, figures.values(), after, runs)
    content = {"schema": SCHEMA, **origin, "rows": rows, "seeds": seeds, "notes": notes}
    files["report.json"] = json.dumps(content, indent=2, default=_plain) + "\n"
    try:
        pathlib.Path(output).mkdir(parents=True, exist_ok=True)
        for name, one in files.items():
            write_atomically(pathlib.Path(output) / name, one)
    except OSError as error:
        raise UsageError(f"--output={output}: cannot be written: {error.strerror}") from error
    return text


def _block(command: str) -> str:
    """Return a command as a line of a block of code; of a path with odd characters, escaped."""
    return f"    {printable(command)}"


def _page(
    before: str, pictures: Iterable[figures_lib.Picture], after: str, runs: Sequence[Run]
) -> str:
    """Return the whole page: Markdown, the figures, Markdown, and the runs' configurations."""
    parts = [_HEAD, _MARKDOWN.render(before)]
    for picture in pictures:
        title = html.escape(picture.title)
        data = base64.b64encode(picture.png).decode()
        parts.append(
            f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
            f"<figcaption>{title}</figcaption></figure>"
        )
    parts.append(_MARKDOWN.render(after))
    for run in runs:
        title = html.escape(f"Configuration of {run.workdir}")
        text = html.escape(json.dumps(to_mapping(run.config), indent=2))
        parts.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    return "\n".join([*parts, "</body></html>\n"])


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
    print(report(arguments.workdirs, arguments.output))
    print(f"\nwritten to {arguments.output}: report.md, report.html, report.json and figures")
