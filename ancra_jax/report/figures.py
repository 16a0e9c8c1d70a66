"""The figures of the diagnostics: accuracy over epsilon, and the loss around a few images."""

import io
import math
import pathlib
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ancra_jax.results.diagnosis import ReportedDiagnosis
from ancra_jax.results.load import Run
from ancra_jax.results.names import ADAPTIVE, NATURAL, attack_order, display_name, scenario_of
from ancra_jax.results.rows import Row, epsilon_text

# Each bar is the same attacker grown stronger, or one that the network was not trained against.
LADDER = ("Nat", "FGSM", "PGD", "C&W", "AA")
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":", "-.")
_BARS = {
    "natural": "#8C8C8C",
    "without_p": "#56B4E9",
    "with_p": "#0072B2",
    "adaptive": "#E69F00",
    "worst": "#B22222",
}
INK = "#333333"
_LEGEND_WIDTH = 140  # characters that fit beside each other beneath the curves
_PANELS = (
    ("train", "loss", "Training loss", 1),
    ("selection", "natural_accuracy", "Natural accuracy, selection split (%)", 100),
    ("selection", "robust_accuracy", "Robust accuracy, selection split (%)", 100),
)


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG file, and its title."""

    title: str
    png: bytes


def draw(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Picture]:
    """The figures by file name.

    Args:
      runs: for the training curves; those without metrics are left out.
      rows: for the ladders; those without an evaluation are left out.
    """
    figures = {}
    if any(run.curves for run in runs):
        figures["curves.png"] = Picture("Training curves", _curves(runs, rows))
    for row in rows:
        if row.accuracy:
            directory = pathlib.Path(row.workdir).resolve().name
            stem = f"ladder_{re.sub(r'[^A-Za-z0-9]+', '_', directory)}_{row.checkpoint}"
            figures[unused_name(stem, figures)] = Picture(
                f"Ladder of attacks: {row.title}", _ladder(row)
            )
    return figures


def unused_name(stem: str, figures: Container[str]) -> str:
    """A file name that is not among the figures yet."""
    name, number = f"{stem}.png", 1
    while name in figures:
        number += 1
        name = f"{stem}_{number}.png"
    return name


def _curves(runs: Sequence[Run], rows: Sequence[Row]) -> bytes:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    labels = list(dict.fromkeys(run.label for run in runs))
    for axes, (kind, quantity, title, scale) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        for run in runs:
            points = [
                (record["step"], record["epoch"], scale * record[quantity])
                for record in run.curves
                if record["kind"] == kind and quantity in record
            ]
            if not points:
                continue
            _, epochs, values = zip(*points, strict=True)
            style = _style(run, runs, labels)
            axes.plot(epochs, values, linewidth=2, marker="." if len(points) == 1 else "", **style)
            if kind == "selection":
                evaluated = {row.step for row in rows if row.workdir == run.workdir}
                for step, epoch, value in points:
                    if step in evaluated:
                        axes.plot(epoch, value, "o", markersize=7, color=style["color"])
        clean(axes, title)
        axes.set_xlabel("Epoch", fontsize=12)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if scale == 100:
            axes.set_ylim(0, 100)
    handles = {
        handle.get_label(): handle
        for axes in figure.axes
        for handle in axes.get_lines()
        if not str(handle.get_label()).startswith("_")
    }
    if any(row.accuracy for row in rows):
        handles["dot"] = Line2D(
            [], [], color="grey", marker="o", linestyle="", label="evaluated checkpoint"
        )
    longest = max(len(str(handle.get_label())) for handle in handles.values())
    columns = max(1, min(4, _LEGEND_WIDTH // (longest + 8)))
    figure.set_figheight(3.6 + 0.27 * math.ceil(len(handles) / columns))
    figure.legend(
        handles=list(handles.values()),
        loc="outside lower center",
        ncols=columns,
        fontsize=12,
        frameon=False,
        handlelength=3,
    )
    return png(figure)


def _style(run: Run, runs: Sequence[Run], labels: Sequence[str]) -> dict[str, Any]:
    """A colour for each method, a line for each of its runs."""
    namesakes = [other for other in runs if other.label == run.label]
    label = f"{run.label}, seed {run.config.seed}" if len(namesakes) > 1 else run.label
    if len({other.config.seed for other in namesakes}) < len(namesakes):
        label = f"{label}, {run.workdir}"
    return {
        "label": label,
        "color": COLOURS[labels.index(run.label) % len(COLOURS)],
        "linestyle": LINES[namesakes.index(run) % len(LINES)],
    }


def _ladder(row: Row) -> bytes:
    names = sorted(row.common_accuracy, key=lambda name: attack_order(name, LADDER))
    labels = [display_name(name).replace(" (p)", "\nwith p") for name in names]
    figure = Figure(figsize=(max(5.0, 0.95 * len(names) + 2), 3.6), layout="constrained")
    axes = figure.subplots()
    for position, name in enumerate(names):
        colour = _BARS[name if name in (NATURAL, ADAPTIVE) else scenario_of(name)]
        _bar(axes, position, row.common_accuracy[name], colour, fooled=name in row.fooled_attacks)
    if row.worst_case:
        labels.append("Worst\ncase")
        _bar(axes, len(names), row.worst_case.accuracy, _BARS["worst"], row.worst_case.interval[1])
        low, high = (100 * bound for bound in row.worst_case.interval)
        axes.vlines(len(names), low, high, color=INK, linewidth=1.5)
    if NATURAL in row.accuracy:
        axes.axhline(100 * row.common_accuracy[NATURAL], color=INK, linestyle=":", linewidth=1)
    clean(axes, f"{row.title}\n{_setting(row)}")
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0, labelsize=11)
    axes.set_ylabel("Accuracy (%)", fontsize=12)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    return png(figure)


def _bar(
    axes: Axes,
    position: int,
    value: float,
    colour: str,
    label_above: float = 0.0,
    fooled: bool = False,
):
    """A bar with its value above it; hatched where the attack is fooled."""
    axes.bar(
        position,
        100 * value,
        width=0.72,
        color=colour,
        hatch="//" if fooled else None,
        edgecolor="white" if fooled else colour,
    )
    axes.annotate(
        f"{100 * value:.1f}{'†' if fooled else ''}",
        (position, 100 * max(value, label_above)),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=12,
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


def _setting(row: Row) -> str:
    return f"{row.data}, {row.examples[0]} examples, {row.norm} epsilon {row.epsilon:.4g}"


def clean(axes: Axes, title: str):
    """The look that all axes share."""
    axes.set_title(title, fontsize=12, loc="left", color=INK)
    axes.tick_params(labelsize=11, colors=INK)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """Through the Agg canvas itself: no display and no global state of pyplot."""
    buffer = io.BytesIO()
    figure.set_dpi(150)
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


_LEVELS = 12


def draw_diagnoses(rows: Sequence[Row]) -> dict[str, Picture]:
    """The figures by file name; none for rows without a diagnosis."""
    figures: dict[str, Picture] = {}
    diagnosed = [(row, row.diagnosis) for row in rows if row.diagnosis]
    if diagnosed:
        figures["epsilon.png"] = Picture("Accuracy over epsilon", _epsilon_curves(diagnosed))
    for row, diagnosis in diagnosed:
        stem = (
            f"landscape_{re.sub(r'[^A-Za-z0-9]+', '_', pathlib.Path(row.workdir).resolve().name)}"
        )
        name = unused_name(f"{stem}_{row.checkpoint}", figures)
        figures[name] = Picture(f"Loss landscape: {row.title}", _landscape(row, diagnosis))
    return figures


def _epsilon_curves(diagnosed: Sequence[tuple[Row, ReportedDiagnosis]]) -> bytes:
    """Radii are spaced evenly: they double from one to the next, and 0 has its place."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    ticks: dict[float, int] = {}
    for _, diagnosis in diagnosed:
        radii = [epsilon for epsilon in diagnosis.epsilons if epsilon <= 0.5]
        for epsilon in radii:
            ticks.setdefault(epsilon, len(ticks))
    positions = {epsilon: place for place, epsilon in enumerate(sorted(ticks))}
    for number, (row, diagnosis) in enumerate(diagnosed):
        points = [
            (positions[epsilon], 100 * accuracy)
            for epsilon, accuracy in zip(diagnosis.epsilons, diagnosis.accuracies, strict=True)
            if epsilon in positions
        ]
        axes.plot(
            *zip(*points, strict=True),
            label=f"{row.title}: {diagnosis.verdict}",
            color=COLOURS[number % len(COLOURS)],
            linestyle=LINES[number // len(COLOURS) % len(LINES)],
            marker="o",
            markersize=4,
            linewidth=2,
        )
    clean(axes, "Accuracy under 20 steps of APGD (%), by radius: a rise is a failing attack")
    labels = ["0.5" if epsilon == 0.5 else epsilon_text(epsilon) for epsilon in sorted(ticks)]
    axes.set_xticks(range(len(labels)), ["0" if label == "0/255" else label for label in labels])
    axes.set_xlabel("Epsilon (Linf)", fontsize=12)
    axes.set_ylim(0, 102)
    figure.legend(loc="outside lower center", fontsize=11, frameon=False, ncols=1)
    figure.set_figheight(3.8 + 0.25 * len(diagnosed))
    return png(figure)


def _landscape(row: Row, diagnosis: ReportedDiagnosis) -> bytes:
    count = len(diagnosis.losses)
    figure = Figure(figsize=(max(5.0, 2.9 * count + 1.2), 3.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, count, sharey=True))
    finite = diagnosis.losses[np.isfinite(diagnosis.losses)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    levels = np.linspace(low, max(high, low + 1e-6), _LEVELS)
    reach = 255 * diagnosis.offsets
    for number, (axes, losses) in enumerate(zip(panels, diagnosis.losses, strict=True)):
        drawn = axes.contourf(reach, reach, losses, levels=levels, cmap="cividis")
        radius = 255 * row.epsilon if row.norm == "linf" else 0.0
        if 0 < radius <= reach.max():
            square = [-radius, radius, radius, -radius, -radius]
            axes.plot(square, [-radius, -radius, radius, radius, -radius], color="white", lw=1.5)
        axes.plot(0, 0, "o", color="white", markersize=4)
        axes.set_title(f"test image {number}", fontsize=11, color=INK)
        axes.set_xlabel("random signs (1/255)", fontsize=11)
        axes.tick_params(labelsize=10, colors=INK)
    panels[0].set_ylabel("sign of the gradient (1/255)", fontsize=11)
    bar = figure.colorbar(drawn, ax=list(panels))
    bar.set_label("cross-entropy", fontsize=11)
    figure.suptitle(f"{row.title}; white: the image, and epsilon", fontsize=12, x=0.01, ha="left")
    return png(figure)
