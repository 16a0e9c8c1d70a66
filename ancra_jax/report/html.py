"""A report as one HTML page that needs no other file."""

import base64
import html
import json
from collections.abc import Iterable, Sequence

from markdown_it import MarkdownIt

from ancra_jax.config.schema import to_mapping
from ancra_jax.report.figures import Picture
from ancra_jax.results.load import Run

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


def page(before: str, figures: Iterable[Picture], after: str, runs: Sequence[Run]) -> str:
    """Return the whole page: Markdown, the figures, Markdown, and the runs' configurations."""
    parts = [
        _HEAD,
        _MARKDOWN.render(before),
        *map(_figure, figures),
        _MARKDOWN.render(after),
        *map(_configuration, runs),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _figure(figure: Picture) -> str:
    title = html.escape(figure.title)
    data = base64.b64encode(figure.png).decode()
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _configuration(run: Run) -> str:
    title = html.escape(f"Configuration of {run.workdir}")
    text = html.escape(json.dumps(to_mapping(run.config), indent=2))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"
