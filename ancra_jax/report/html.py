"""The report as one HTML page that needs no other file."""

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence

from ancra_jax.config.schema import to_mapping
from ancra_jax.report.figures import Picture
from ancra_jax.report.markdown import Table
from ancra_jax.results.load import Run
from ancra_jax.results.rows import Row

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #222; }
.number { text-align: right; white-space: nowrap; }
.worst { background: #fbeaea; }
.worst strong { color: #b22222; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; }
figcaption { color: #555; }
dt { font-weight: 600; }
pre, code { font-size: .9em; background: #f5f5f5; }
pre { padding: .5rem; overflow-x: auto; }
"""


def page(
    caption: str,
    tables: Sequence[Table],
    notes: Sequence[str],
    figures: Mapping[str, Picture],
    runs: Sequence[Run],
    rows: Sequence[Row],
    origin: Mapping[str, str],
) -> str:
    """The whole page.

    Args:
      caption: above the tables.
      tables: of accuracies.
      notes: beneath them.
      figures: by file name; embedded.
      runs: whose configurations are shown.
      rows: whose provenance is shown.
      origin: of the report: ``command``, ``version`` and ``created``.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Robustness report</title><style>{_STYLE}</style></head><body>",
        f"<h1>Robustness report</h1><p>{_inline(caption)}</p>",
        *(_table(table) for table in tables),
        "<ul>",
        *(f"<li>{_inline(note)}</li>" for note in notes),
        "</ul>",
        *(_figure(figure) for figure in figures.values()),
        "<h2>Provenance</h2>",
        *(_provenance(row) for row in rows),
        *(_configuration(run) for run in runs),
        f"<p>This report, by {_inline(origin['version'])} at {_inline(origin['created'])}:</p>",
        f"<pre>{html.escape(origin['command'])}</pre>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(table: Table) -> str:
    first_number = len(table.headers) - table.numeric
    classes = [
        "number worst" if header.startswith("Worst case") else "number" * (position >= first_number)
        for position, header in enumerate(table.headers)
    ]

    def line(tag, cells):
        cells = zip(cells, classes, strict=True)
        return "".join(f'<{tag} class="{kind}">{_inline(cell)}</{tag}>' for cell, kind in cells)

    return "\n".join(
        [
            f'<div class="wide"><table><caption>{_inline(table.title)}</caption>',
            f"<thead><tr>{line('th', table.headers)}</tr></thead><tbody>",
            *(f"<tr>{line('td', cells)}</tr>" for cells in table.rows),
            "</tbody></table></div>",
        ]
    )


def _figure(figure: Picture) -> str:
    title, data = html.escape(figure.title), base64.b64encode(figure.png).decode()
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _provenance(row: Row) -> str:
    entries = {
        "directory": row.workdir,
        "training seed": row.seed,
        "step of the checkpoint": "not evaluated yet" if row.step is None else row.step,
    }
    entries |= {name.replace("_", " "): "; ".join(row.provenance[name]) for name in row.provenance}
    entries = {"evaluation " * (name == "seed") + name: text for name, text in entries.items()}
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(text))}</dd>"
        for name, text in entries.items()
    )
    commands = html.escape("\n".join(row.evaluate))
    return f"<h3>{html.escape(row.title)}</h3><dl>{items}</dl><pre>{commands}</pre>"


def _configuration(run: Run) -> str:
    title = html.escape(f"Configuration of {run.workdir}")
    text = html.escape(json.dumps(to_mapping(run.config), indent=2))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"


def _inline(text: str) -> str:
    """Markdown's strong and code."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)
