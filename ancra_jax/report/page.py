"""The page of a report: what its template (page.html) shows of runs and rows."""

import base64
import functools
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image

from ancra_jax.config import to_mapping
from ancra_jax.errors import printable
from ancra_jax.results.examples import Details, Example
from ancra_jax.results.load import StoredDiagnosis
from ancra_jax.results.names import NATURAL, display_name
from ancra_jax.results.rows import Row, SeedsRow, epsilon_text, seeds_text
from ancra_jax.results.statistics import survivors
from ancra_jax.results.store import evaluate_all
from ancra_jax.results.tables import Column, Table, TextColumn, build, caption, escaped, tables_of
from ancra_jax.results.tables.columns import CHECKS, NOT_ATTACKED, RUNS

if TYPE_CHECKING:
    from ancra_jax.report.write import Report

# Names of methods and directories stand in the Markdown: none may become a link, image or HTML.
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
MARKDOWN.disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])
_BROKEN, _WITHSTOOD = 9, 3  # examples of a gallery
_CLASSES = 20  # of more, tables show the worst alone
_SECTIONS = {
    "results": "Robust accuracy",
    "missing": "What is missing",
    "ladder": "Attacks, weakest first",
    "gallery": "Adversarial images",
    "classes": "Accuracy by class",
    "confusion": "Confusion under attack",
    "epsilon": "Accuracy over epsilon",
    "landscape": "Loss landscape",
    "training": "Training",
    "features": "Features",
    "diagnostics": "Diagnostics",
    "notes": "How to read the numbers",
    "settings": "Settings and origin",
}


def render(
    report: "Report",
    seeds: Sequence[SeedsRow],
    details: Sequence[Details],
    *,
    notes: Sequence[str],
    row_notes: Sequence[str],
    missing: Sequence[str],
    origin: Mapping[str, str],
) -> str:
    """Return the page, which needs no other file and no network.

    Args:
      report: its runs, rows and pictures.
      seeds: what several rows have in common.
      details: what is known of single examples, of each row.
      notes, row_notes, missing: Markdown: how to read the numbers, what is said of single rows, and
        what was not computed.
      origin: ``command``, ``version`` and ``created`` of the report.
    """
    runs, rows = report.runs, report.rows
    tables = {table.title: table for table in tables_of(rows, seeds)}
    tables.pop(_SECTIONS["diagnostics"], None)
    pairs = list(zip(rows, details, strict=True))
    context: dict[str, Any] = {
        "pictures": list(report.pictures.values()),
        "cards": _cards(rows, seeds),
        "missing": [*missing, *_no_images(pairs)],
        "ladder": list(tables.values()),
        "gallery": [_gallery(row, one) for row, one in pairs if one.examples],
        "classes": [_classes(row, one) for row, one in pairs if len(one.labels)],
        "confusion": [one for row, detail in pairs if (one := _confusion(row, detail))],
        "diagnostics": [_diagnosis(row, row.diagnosis) for row in rows if row.diagnosis],
        "notes": notes,
        "row_notes": row_notes,
        "ladders": sum(one.kind == "ladder" for one in report.pictures.values()),
        "origin_table": build("", RUNS, rows),
        "commands": [printable(command) for row in rows for command in row.evaluate],
        "configurations": [
            (f"Configuration of {one.workdir}", json.dumps(to_mapping(one.config), indent=2))
            for one in runs
        ],
        "origin": origin,
        "command": printable(origin["command"]),
        "caption": caption(rows),
    }
    drawn = {one.kind.replace("curves", "training") for one in report.pictures.values()}
    titles = {  # of the sections that have something to show: of that name, or pictures of the kind
        anchor: title
        for anchor, title in _SECTIONS.items()
        if anchor in ("results", "settings") or context.get(anchor) or anchor in drawn
    }
    return _environment().get_template("page.html").render(**context, titles=titles)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ancra_jax.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    # What these return is HTML: of Markdown without any, and of Matplotlib.
    environment.filters["markdown"] = lambda text: Markup(MARKDOWN.renderInline(text))
    environment.filters["svg"] = Markup
    environment.filters["percent"] = _percent
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _cards(rows: Sequence[Row], seeds: Sequence[SeedsRow]) -> list[dict[str, Any]]:
    """Return the headline of each method of several seeds, and of each other row."""
    grouped = [row for group in seeds for row in group.rows]
    single = [row for row in rows if not any(row is other for other in grouped)]
    return [*map(_seeds_card, seeds), *map(_card, single)]


def _card(row: Row) -> dict[str, Any]:
    """Return what a card shows; its state is 'bound' of what was not attacked through its mask."""
    card: dict[str, Any] = {
        "label": row.label,
        "about": f"seed {row.seed}, {row.checkpoint} checkpoint, {row.network}",
        "natural": row.common_accuracy.get(NATURAL),
        "state": "none",
        "number": "No worst case" if row.accuracy else "Not evaluated",
        "interval": "see what is missing",
    }
    if row.worst_case:
        low, high = row.worst_case.interval
        words = f"worst case; 95 %: {_percent(low)} to {_percent(high)}"
        return card | _measured(row.worst_case.accuracy, low, high, words)
    if row.upper_bound:
        card |= {"state": "bound", "number": NOT_ATTACKED.capitalize()}
        left = _percent(row.upper_bound.accuracy)
        card["interval"] = f"no worst case: the attacks that were run leave {left} %"
    return card


def _seeds_card(row: SeedsRow) -> dict[str, Any]:
    natural, network = row.stages.get("Nat"), row.setting["Network"]
    card: dict[str, Any] = {
        "label": row.label,
        "about": f"mean of {len(row.seeds)} seeds, {row.checkpoint} checkpoint, {network}",
        "natural": natural and natural.mean,
        "state": "bound" if row.upper_bound else "none",
        "number": NOT_ATTACKED.capitalize() if row.upper_bound else "No common worst case",
        "interval": "see the table below",
    }
    if row.worst_case:
        mean, std = row.worst_case.mean, row.worst_case.std
        words = f"worst case; ± {_percent(std)} over seeds {seeds_text(row.seeds)}"
        card |= _measured(mean, max(0.0, mean - std), min(1.0, mean + std), words)
    return card


def _measured(worst: float, low: float, high: float, words: str) -> dict[str, Any]:
    """Return what a card says of a worst case; its bar needs start and width of the interval."""
    span = _percent(low), _percent(high - low)
    return {"state": "measured", "number": _percent(worst), "interval": words, "span": span}


def _no_images(pairs: Iterable[tuple[Row, Details]]) -> Iterable[str]:
    """Yield, as Markdown, which evaluations kept no images, and the command that keeps them."""
    lacking = [
        row
        for row, one in pairs
        if len(one.labels) and not one.kept and (row.worst_case or row.upper_bound)
    ]
    for checkpoint in dict.fromkeys(row.checkpoint for row in lacking):
        found = [row for row in lacking if row.checkpoint == checkpoint]
        counts = {max(row.examples) for row in found}
        flags = " --suite=quick --force" + (
            f" --num_examples={counts.pop()}" if len(counts) == 1 else ""
        )
        command = evaluate_all([row.workdir for row in found], checkpoint, flags)
        titles = escaped(", ".join(row.title for row in found))
        yield (
            f"**Adversarial images** ({titles}): the evaluation is older than what keeps them. "
            f"Run `{printable(command)}`."
        )


def _gallery(row: Row, details: Details) -> dict[str, Any]:
    """Return examples that were broken, of every attack in turn, and some that withstood."""
    turns: dict[str, int] = {}
    ranked = []
    for number, example in enumerate(details.examples):
        turns[example.attack] = turns.get(example.attack, -1) + 1
        ranked.append((turns[example.attack], number, example))
    ranked.sort(key=lambda one: one[:2])
    broken = [one for one in ranked if one[2].broken_by][:_BROKEN]
    withstood = [one for one in ranked if not one[2].broken_by][:_WITHSTOOD]
    shown = [one[2] for one in sorted(broken, key=lambda one: one[1])]
    shown += [one[2] for one in withstood]
    scale = f"between −{epsilon_text(row.epsilon)} and {epsilon_text(row.epsilon)}"
    if row.norm != "linf":
        scale = "between the extremes of each image"
    height, width = shown[0].natural.shape[:2]
    return {
        "title": row.title,
        "difference": f"The difference is drawn {scale}; grey is none.",
        "size": (width, height),
        "examples": [_shown(row, details, one) for one in shown],
    }


def _shown(row: Row, details: Details, example: Example) -> dict[str, Any]:
    natural = example.natural / np.float32(255)
    difference = example.adversarial - natural
    reach = row.epsilon if row.norm == "linf" else max(float(np.abs(difference).max()), 1e-6)
    images = (natural, example.adversarial, 0.5 + 0.5 * difference / reach)
    scores = np.exp(example.logits - example.logits.max(axis=1, keepdims=True))
    shares = scores / scores.sum(axis=1, keepdims=True)
    seen = [f"{details.classes[one.argmax()]} {100 * one.max():.0f} %" for one in shares]
    by = display_name(example.attack)
    if example.broken_by not in ("", example.attack):
        by = f"{by}, {example.broken_by}"
    attacked = np.any(difference)
    return {
        "broken": bool(example.broken_by),
        "label": details.classes[example.label],
        "index": example.index,
        "images": [_png(np.clip(np.rint(255 * one), 0, 255).astype(np.uint8)) for one in images],
        "names": ("natural image", "adversarial image", "difference"),
        "seen": (seen[0], seen[1] if attacked else "unchanged", "" if attacked else "none"),
        "outcome": f"broken first by {by}"
        if example.broken_by
        else "withstood every attack" + (f"; shown: {by}" if attacked else ""),
    }


def _png(image: UInt8[np.ndarray, "height width channels"]) -> str:
    """Return an image as the base64 of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _classes(row: Row, details: Details) -> dict[str, Any]:
    """Return natural and robust accuracy of each class."""
    left = survivors(row.evaluation.correct)
    labels = details.labels[: len(left)]
    natural = row.evaluation.correct.get(NATURAL, np.full(len(left), False))[: len(left)]
    found = []
    for number, name in enumerate(details.classes):
        mine = labels == number
        if mine.any():
            found.append((name, int(mine.sum()), natural[mine].mean(), left[mine].mean()))
    title = row.title
    if len(found) > _CLASSES:
        title += f": the {_CLASSES} classes with the lowest robust accuracy"
        found = sorted(found, key=lambda one: one[3])[:_CLASSES]
    return {
        "title": title,
        "left": "At most" if row.upper_bound else "Robust",
        "shade": "bound" if row.upper_bound else "worst",
        "rows": [(name, count, _percent(one), _percent(two)) for name, count, one, two in found],
    }


def _confusion(row: Row, details: Details) -> dict[str, Any] | None:
    """Return what the network sees in adversarial images; None if no attack's is kept."""
    attacks = [name for name in details.predictions if name != NATURAL]
    if not attacks:
        return None
    attack = min(attacks, key=lambda name: row.accuracy[name])
    predictions, count = details.predictions[attack], len(details.classes)
    labels = details.labels[: len(predictions)]
    matrix = np.zeros((count, count), int)
    np.add.at(matrix, (labels, predictions), 1)
    found: dict[str, Any] = {"title": row.title, "pairs": None, "names": details.classes}
    found["attack"] = f"{display_name(attack)}, {len(labels)} examples"
    if count > _CLASSES:
        wrong = np.argsort(-np.where(np.eye(count, dtype=bool), -1, matrix), axis=None)[:_CLASSES]
        columns = [
            TextColumn("Class", lambda one: details.classes[one[0]]),
            TextColumn("Seen as", lambda one: details.classes[one[1]]),
            Column("Examples", lambda one: int(matrix[one])),
        ]
        found["pairs"] = build("", columns, [divmod(int(one), count) for one in wrong])
    found["shares"] = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).tolist()
    return found


def _diagnosis(row: Row, found: StoredDiagnosis) -> Table:
    return build(f"{escaped(row.title)}: {escaped(found.verdict)}", CHECKS, found.checks)
