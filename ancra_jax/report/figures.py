"""The figures of a report: training curves, accuracy by attack, and those of the diagnostics."""

import io
import itertools
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ancra_jax.results import names
from ancra_jax.results.load import Run, StoredDiagnosis
from ancra_jax.results.rows import Row, epsilon_text
from ancra_jax.results.tables.table import DAGGER

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":", "-.")
NATURAL, FINAL, HEADS, ADAPTIVE, WORST = "#8C8C8C", "#56B4E9", "#0072B2", "#E69F00", "#B22222"
INK = "#333333"
_STYLE: Any = {
    **dict.fromkeys(("axes.labelsize", "axes.titlesize", "font.size", "legend.fontsize"), 12),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
    **dict.fromkeys(("axes.edgecolor", "text.color"), INK),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 11),
    **{"axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#DDDDDD"},
    **{"axes.titlelocation": "left", "figure.dpi": 150, "lines.linewidth": 2},
}
_LEVELS = 12  # of the contours of a landscape
_LEGEND_WIDTH = 140  # characters that fit beside each other beneath the curves
_PANELS = (
    ("train", "loss", "Training loss", 1),
    ("selection", "natural_accuracy", "Natural accuracy, selection split (%)", 100),
    ("selection", "robust_accuracy", "Robust accuracy, selection split (%)", 100),
)


class Picture(NamedTuple):
    """A figure as a PNG file, and its title."""

    title: str
    png: bytes


@matplotlib.rc_context(_STYLE)
def draw(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Picture]:
    """Return the figures of a report by file name, without those whose numbers are missing.

    The training curves are of the runs; the rows have all other figures.
    """
    pictures: dict[str, Picture] = {}

    def keep(stem: str, title: str, figure: Figure) -> None:
        """Keep a figure as PNG, drawn without a display and without the state of pyplot."""
        buffer = io.BytesIO()
        figure.savefig(buffer)
        # The directories of two rows may be namesakes.
        stems = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        name = next(f"{one}.png" for one in stems if f"{one}.png" not in pictures)
        pictures[name] = Picture(title, buffer.getvalue())

    def place(row: Row) -> str:
        directory = re.sub(r"[^A-Za-z0-9]+", "_", pathlib.Path(row.workdir).resolve().name)
        return f"{directory}_{row.checkpoint}"

    if any(run.curves for run in runs):
        keep("curves", "Training curves", _curves(runs, rows))
    for row in rows:
        if row.accuracy:
            keep(f"ladder_{place(row)}", f"Accuracy by attack: {row.title}", _accuracies(row))
    diagnosed = [(row, row.diagnosis) for row in rows if row.diagnosis]
    if diagnosed:
        keep("epsilon", "Accuracy over epsilon", _epsilon_curves(diagnosed))
    for row, diagnosis in diagnosed:
        figure = _landscape(row, diagnosis)
        keep(f"landscape_{place(row)}", f"Loss landscape: {row.title}", figure)
    return pictures


def _curves(runs: Sequence[Run], rows: Sequence[Row]) -> Figure:
    """Draw each run as a line, a colour for each method, with dots at evaluated checkpoints."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    labels = list(dict.fromkeys(run.label for run in runs))
    handles: dict[str, Line2D] = {}
    for axes, (kind, quantity, title, scale) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        axes.set_title(title)
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for run in runs:
            records = [one for one in run.curves if one["kind"] == kind and quantity in one]
            evaluated = {row.step for row in rows if row.workdir == run.workdir}
            dots = [at for at, one in enumerate(records) if one["step"] in evaluated]
            namesakes = [other for other in runs if other.label == run.label]
            (line,) = axes.plot(
                [one["epoch"] for one in records],
                [scale * one[quantity] for one in records],
                color=COLOURS[labels.index(run.label) % len(COLOURS)],
                linestyle=LINES[namesakes.index(run) % len(LINES)],
                marker="o" if kind == "selection" and dots else "." * (len(records) == 1),
                markevery=dots or None,
            )
            label = f"{run.label}, seed {run.config.seed}" if len(namesakes) > 1 else run.label
            if len({other.config.seed for other in namesakes}) < len(namesakes):
                label += f", {run.workdir}"
            if records:
                handles.setdefault(label, line)
        if scale == 100:
            axes.set_ylim(0, 100)
    if any(row.accuracy for row in rows):
        handles["evaluated checkpoint"] = Line2D([], [], color="grey", marker="o", linestyle="")
    columns = max(1, min(4, _LEGEND_WIDTH // (max(map(len, handles)) + 8)))
    figure.set_figheight(3.6 + 0.27 * math.ceil(len(handles) / columns))
    lines = list(handles.values())
    figure.legend(lines, list(handles), loc="outside lower center", ncols=columns, handlelength=3)
    return figure


def _accuracies(row: Row) -> Figure:
    """Draw a bar for each attack, hatched where it is above the natural accuracy."""
    order = sorted(
        row.common_accuracy, key=lambda name: names.attack_order(name, names.STRENGTH_ORDER)
    )
    labels = [names.display_name(name).replace(" (", "\n(") for name in order]
    heights = [100 * row.common_accuracy[name] for name in order]
    special = {names.NATURAL: NATURAL, names.ADAPTIVE: ADAPTIVE}
    colours = [special.get(name) or (FINAL, HEADS)[names.parse(name).heads] for name in order]
    fooled = [name in row.fooled_attacks for name in order]
    errors = np.zeros((2, len(order) + 1))
    if worst := row.worst_case:
        labels.append("Worst\ncase")
        heights.append(100 * worst.accuracy)
        colours.append(WORST)
        fooled.append(False)
        errors[:, -1] = 100 * np.abs(np.subtract(worst.interval, worst.accuracy))
    figure = Figure(figsize=(max(5.0, 0.95 * len(labels) + 1), 3.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(
        range(len(labels)),
        heights,
        width=0.72,
        color=colours,
        edgecolor="white",
        hatch=["//" * above for above in fooled],
        yerr=errors[:, : len(labels)],
        error_kw={"ecolor": INK, "elinewidth": 1.5},
    )
    texts = [f"{value:.1f}{DAGGER * above}" for value, above in zip(heights, fooled, strict=True)]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.bar_label(bars, texts, padding=4, bbox=box)
    if names.NATURAL in row.accuracy:
        axes.axhline(100 * row.common_accuracy[names.NATURAL], color=INK, linestyle=":", lw=1)
    setting = f"{row.data}, {row.examples[0]} examples, {row.setting['Epsilon']}"
    axes.set_title(f"{row.title}\n{setting}")
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("Accuracy (%)")
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    return figure


def _epsilon_curves(diagnosed: Sequence[tuple[Row, StoredDiagnosis]]) -> Figure:
    """Draw accuracy over radii, which are spaced evenly: they double, and 0 has its place."""
    figure = Figure(figsize=(9, 3.8 + 0.25 * len(diagnosed)), layout="constrained")
    axes = figure.subplots()
    radii = sorted({one for _, diagnosis in diagnosed for one in diagnosis.epsilons if one <= 0.5})
    for number, (row, diagnosis) in enumerate(diagnosed):
        points = dict(zip(diagnosis.epsilons, diagnosis.accuracies, strict=True))
        axes.plot(
            [place for place, radius in enumerate(radii) if radius in points],
            [100 * points[radius] for radius in radii if radius in points],
            label=f"{row.title}: {diagnosis.verdict}",
            color=COLOURS[number % len(COLOURS)],
            linestyle=LINES[number // len(COLOURS) % len(LINES)],
            marker="o",
            markersize=4,
        )
    axes.set_title("Accuracy under 20 steps of APGD (%), by radius: a rise is a failing attack")
    labels = [epsilon_text(radius) if radius else "0" for radius in radii]
    axes.set_xticks(range(len(radii)), labels)
    axes.set_xlabel("Epsilon (Linf)")
    axes.set_ylim(0, 102)
    figure.legend(loc="outside lower center")
    return figure


def _landscape(row: Row, diagnosis: StoredDiagnosis) -> Figure:
    """Draw the loss around each of a few images, with the ball of the threat model."""
    count = len(diagnosis.losses)
    figure = Figure(figsize=(max(5.0, 2.9 * count + 1.2), 3.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, count, sharey=True))
    finite = diagnosis.losses[np.isfinite(diagnosis.losses)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    levels = np.linspace(low, max(high, low + 1e-6), _LEVELS)
    reach = 255 * diagnosis.offsets
    radius = 255 * row.epsilon
    for number, (axes, losses) in enumerate(zip(panels, diagnosis.losses, strict=True)):
        drawn = axes.contourf(reach, reach, losses, levels=levels, cmap="cividis")
        if row.norm == "linf" and radius <= reach.max():
            corners = np.array([-radius, radius, radius, -radius, -radius])
            axes.plot(corners, np.roll(corners, 1), color="white", linewidth=1.5)
        axes.plot(0, 0, "o", color="white", markersize=4)
        axes.set_title(f"test image {number}", loc="center")
        axes.set_xlabel("random signs (1/255)")
    panels[0].set_ylabel("sign of the gradient (1/255)")
    figure.colorbar(drawn, ax=list(panels)).set_label("cross-entropy")
    figure.suptitle(f"{row.title}; white: the image, and epsilon", fontsize=12, x=0.01, ha="left")
    return figure
