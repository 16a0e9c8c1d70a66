"""The figures of a report as SVG: training curves, accuracy by attack, and the diagnostics'.

Ink, paper and rules are variables of CSS with defaults, so that a figure in a page has the page's
colours, and one in a file is black on white. Text stays text. All are narrow enough for a phone.
"""

import html
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ancra_jax.ops.files import as_path
from ancra_jax.results import names
from ancra_jax.results.load import Run, StoredDiagnosis, selected
from ancra_jax.results.rows import Row, epsilon_text
from ancra_jax.results.tables.table import DAGGER

# Okabe and Ito's colours, which colour-blind readers tell apart; those that are light come last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.")
NATURAL, FINAL, HEADS, ADAPTIVE, WORST = "#8C8C8C", "#56B4E9", "#0072B2", "#E69F00", "#D55E00"
# Stand for variables of CSS while Matplotlib draws: it takes colours alone.
_INK, _PAPER, _RULE = "#010203", "#fdfcfb", "#c1c2c3"
_VARIABLES = {
    _INK: "var(--ink, #1f2328)",
    _PAPER: "var(--paper, #ffffff)",
    _RULE: "var(--rule, #d8dbe0)",
}
_WIDTH = 4.8  # inches
STYLE: Any = {
    **dict.fromkeys(("axes.labelsize", "axes.titlesize", "font.size"), 11),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 10),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
    **dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), _INK
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), _PAPER),
    **{"axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.color": _RULE},
    **{"axes.linewidth": 0.8, "grid.linewidth": 0.6, "lines.linewidth": 1.8, "figure.dpi": 100},
    **{"axes.titlelocation": "left", "font.sans-serif": ["DejaVu Sans"]},
    **{"svg.fonttype": "none", "hatch.linewidth": 1.0, "text.parse_math": False},
}
_FONT = re.compile(r"'DejaVu Sans', sans-serif")


class Picture(NamedTuple):
    """A figure as SVG, and what it shows."""

    title: str
    svg: str  # an element; in a file it needs nothing else
    kind: str  # 'curves', 'ladder', 'epsilon' or 'landscape'


@matplotlib.rc_context(STYLE)
def draw(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Picture]:
    """Return the figures of a report by file name, without those whose numbers are missing.

    The training curves are of the runs; the rows have all other figures.
    """
    pictures: dict[str, Picture] = {}
    for stem, title, figure in _figures(runs, rows):
        # The directories of two rows may be namesakes.
        name, number = stem, 2
        while f"{name}.svg" in pictures:
            name, number = f"{stem}_{number}", number + 1
        pictures[f"{name}.svg"] = Picture(title, _svg(figure, name, title), stem.split("_")[0])
    return pictures


def _figures(runs: Sequence[Run], rows: Sequence[Row]) -> Iterator[tuple[str, str, Figure]]:
    """Yield the stem of a file, the title, and the figure."""
    trained = [run for run in runs if run.curves]
    if any("robust_accuracy" in one for run in trained for one in run.curves):
        yield "curves", "Natural and robust accuracy while training", _accuracy_curves(trained)
    if any("loss" in one for run in trained for one in run.curves):
        yield "curves_loss", "Training loss", _loss_curves(trained)
    for row in rows:
        if row.accuracy:
            yield f"ladder_{_place(row)}", row.title, _ladder(row)
    found = ((row.title, row.evaluation.features) for row in rows)
    if measured := [(title, features) for title, features in found if features]:
        from ancra_jax.report.features import draw_features  # which takes this module's style

        yield "features", "Distances between features", draw_features(measured)
    diagnosed = [(row, row.diagnosis) for row in rows if row.diagnosis]
    if diagnosed:
        yield "epsilon", "Accuracy over epsilon", _epsilon_curves(diagnosed)
    for row, diagnosis in diagnosed:
        yield f"landscape_{_place(row)}", row.title, _landscape(row, diagnosis)


def _place(row: Row) -> str:
    """Return what names a row in file names."""
    directory = re.sub(r"[^A-Za-z0-9]+", "_", as_path(row.workdir).resolve().name)
    return f"{directory}_{row.checkpoint}"


def _svg(figure: Figure, name: str, title: str) -> str:
    """Return a figure as an SVG element whose ids no other figure of the page has."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)  # which nothing refers to
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    svg = _FONT.sub("system-ui, sans-serif", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    label = html.escape(title)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip() + "\n"


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return what tells runs apart: the method, among namesakes the seed, or the directory."""
    labels = []
    for run in runs:
        namesakes = [other for other in runs if other.label == run.label]
        label = f"{run.label}, seed {run.config.seed}" if len(namesakes) > 1 else run.label
        if len({other.config.seed for other in namesakes}) < len(namesakes):
            label += f", {run.workdir}"
        labels.append(label)
    return labels


def _masked(run: Run) -> bool:
    """Return whether the robust accuracy of a run's curve is that of masked gradients."""
    model, selection = run.config.model, run.config.selection
    return model.reverse_attention and selection.heads != "final_and_first"


def _panel(height: float, handles: int = 0) -> tuple[Figure, Axes]:
    """Return a figure of a height, in inches, with room for a legend beneath it."""
    figure = Figure(figsize=(_WIDTH, height + 0.2 * handles), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    wrapped = [textwrap.fill(label, 52 // columns, break_on_hyphens=False) for label in labels]
    figure.legend(
        handles,
        wrapped,
        loc="outside lower left",
        ncols=columns,
        handlelength=2.2,
        labelspacing=0.35,
        borderpad=0.2,
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _accuracy_curves(runs: Sequence[Run]) -> Figure:
    """Draw natural and robust accuracy of each run, its best checkpoint, and drops of the rate."""
    labels = [
        label + " (robust: not attacked through its mask)" * _masked(run)
        for run, label in zip(runs, _labels(runs), strict=True)
    ]
    figure, axes = _panel(3.2, len(labels) + 3)
    drops: set[float] = set()
    lines = []
    for number, run in enumerate(runs):
        found = [one for one in run.curves if "robust_accuracy" in one]
        epochs = [one["epoch"] for one in found]
        style: Any = {"color": _colour(number), "marker": "." if len(found) == 1 else ""}
        natural = [100 * one["natural_accuracy"] for one in found]
        axes.plot(epochs, natural, linestyle=(0, (4, 2)), linewidth=1.2, **style)
        robust = [100 * one["robust_accuracy"] for one in found]
        lines += axes.plot(epochs, robust, linestyle=LINES[number // len(COLOURS) % 2 * 3], **style)
        if best := selected(run.curves).get("best"):
            axes.plot(best.epoch, 100 * best.robust, "o", color=_colour(number), markersize=7)
        rate = run.config.optimizer
        if rate.schedule == "piecewise" and epochs:
            drops |= {one for one in rate.milestones if one < max(epochs)}
    for drop in drops:
        axes.axvline(drop, color=_INK, linestyle=":", linewidth=0.9)
    axes.set(xlabel="Epoch", ylabel="Accuracy (%)", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [*lines, Line2D([], [], color=_INK), Line2D([], [], color=_INK, ls=(0, (4, 2)))]
    handles += [Line2D([], [], color=_INK, marker="o", ls="")]
    names_ = [*labels, "robust accuracy (PGD)", "natural accuracy", "best checkpoint"]
    if drops:
        handles.append(Line2D([], [], color=_INK, ls=":", linewidth=0.9))
        names_.append("learning rate drops")
    _legend(figure, handles, names_, 1 if max(map(len, names_)) > 24 else 2)
    return figure


def _loss_curves(runs: Sequence[Run]) -> Figure:
    """Draw the training loss of each run."""
    labels = _labels(runs)
    figure, axes = _panel(3.2, len(labels))
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        found = [one for one in run.curves if one["kind"] == "train" and "loss" in one]
        axes.plot(
            [one["epoch"] for one in found],
            [one["loss"] for one in found],
            label=label,
            color=_colour(number),
            linestyle=LINES[number // len(COLOURS) % len(LINES)],
            marker="." if len(found) == 1 else "",
        )
    axes.set(xlabel="Epoch", ylabel="Loss of a batch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, axes.get_lines(), labels, 1 if max(map(len, labels)) > 24 else 2)
    return figure


def _ladder(row: Row) -> Figure:
    """Draw a bar for each attack, hatched where it is above the natural accuracy."""
    order = sorted(
        row.common_accuracy, key=lambda name: names.attack_order(name, names.STRENGTH_ORDER)
    )
    labels = [names.display_name(name).replace("Nat", "Natural") for name in order]
    widths = [100 * row.common_accuracy[name] for name in order]
    special = {names.NATURAL: NATURAL, names.ADAPTIVE: ADAPTIVE}
    colours = [special.get(name) or (FINAL, HEADS)[names.parse(name).heads] for name in order]
    fooled = [name in row.fooled_attacks for name in order]
    errors = np.zeros((2, len(order) + 1))
    if worst := row.worst_case:
        labels.append("Worst case")
        widths.append(100 * worst.accuracy)
        colours.append(WORST)
        fooled.append(False)
        errors[:, -1] = 100 * np.abs(np.subtract(worst.interval, worst.accuracy))
    figure, axes = _panel(0.75 + 0.28 * len(labels))
    bars = axes.barh(
        range(len(labels)),
        widths,
        height=0.66,
        color=colours,
        edgecolor=_PAPER,
        linewidth=0,
        hatch=["////" * above for above in fooled],
        xerr=errors[:, : len(labels)],
        error_kw={"ecolor": _INK, "elinewidth": 1.2},
    )
    ends = [f"{value:.1f}{DAGGER * above}" for value, above in zip(widths, fooled, strict=True)]
    for number, (bar, end) in enumerate(zip(bars, ends, strict=True)):
        place = bar.get_width() + errors[1, number] + 1.2
        box = {"facecolor": _PAPER, "edgecolor": "none", "pad": 0.8}
        axes.text(place, number, end, va="center", fontsize=10, bbox=box)
    if names.NATURAL in row.common_accuracy:
        axes.axvline(100 * row.common_accuracy[names.NATURAL], color=_INK, ls=":", lw=0.9)
    axes.set(xlabel=f"Accuracy of {row.examples[0]} examples (%)", xlim=(0, 112))
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    return figure


def _epsilon_curves(diagnosed: Sequence[tuple[Row, StoredDiagnosis]]) -> Figure:
    """Draw accuracy over radii, which are spaced evenly: they double, and 0 has its place."""
    figure, axes = _panel(3.2, len(diagnosed) + 1)
    radii = sorted({one for _, diagnosis in diagnosed for one in diagnosis.epsilons if one <= 0.5})
    for number, (_, diagnosis) in enumerate(diagnosed):
        points = dict(zip(diagnosis.epsilons, diagnosis.accuracies, strict=True))
        axes.plot(
            [place for place, radius in enumerate(radii) if radius in points],
            [100 * points[radius] for radius in radii if radius in points],
            color=_colour(number),
            linestyle=LINES[number // len(COLOURS) % len(LINES)],
            marker="o",
            markersize=4,
        )
    axes.set(xlabel="Epsilon (Linf)", ylabel="Accuracy (%)", ylim=(0, 102))
    texts = [epsilon_text(radius) if radius else "0" for radius in radii]
    axes.set_xticks(range(len(radii)), texts, rotation=40, ha="right", rotation_mode="anchor")
    labels = [f"{row.title}: {diagnosis.verdict}" for row, diagnosis in diagnosed]
    _legend(figure, axes.get_lines(), labels, 1)
    return figure


def _landscape(row: Row, diagnosis: StoredDiagnosis) -> Figure:
    """Draw the loss around each of a few images, with the ball of the threat model."""
    count = len(diagnosis.losses)
    columns = min(2, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, 0.7 + 1.95 * lines), layout="constrained")
    grid = np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True)).ravel()
    finite = diagnosis.losses[np.isfinite(diagnosis.losses)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    reach = 255 * diagnosis.offsets
    extent = (reach[0], reach[-1], reach[0], reach[-1])
    radius = 255 * row.epsilon
    for number, (axes, losses) in enumerate(zip(grid, diagnosis.losses, strict=False)):
        drawn = axes.imshow(
            losses,
            extent=extent,
            origin="lower",
            vmin=low,
            vmax=max(high, low + 1e-6),
            cmap="cividis",
            interpolation="bilinear",
            aspect="equal",
        )
        if row.norm == "linf" and radius <= reach.max():
            corners = np.array([-radius, radius, radius, -radius, -radius])
            axes.plot(corners, np.roll(corners, 1), color="white", linewidth=1.2)
        axes.plot(0, 0, "o", color="white", markersize=3)
        axes.set_title(f"test image {number}", loc="center", fontsize=10)
        axes.grid(visible=False)
    for axes in grid[count:]:
        axes.set_axis_off()
    figure.supxlabel("random signs (1/255)", fontsize=10)
    figure.supylabel("sign of the gradient (1/255)", fontsize=10)
    figure.colorbar(drawn, ax=list(grid), aspect=30).set_label("cross-entropy")
    return figure
