"""The figures of the diagnostics: accuracy over epsilon, and the loss around a few images."""

import pathlib
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ancra_jax.report_diagnosis import ReportedDiagnosis
from ancra_jax.report_figures import COLOURS, INK, LINES, Picture, clean, png, unused_name
from ancra_jax.report_rows import Row, epsilon_text

_LEVELS = 12


def draw_diagnoses(rows: Sequence[Row]) -> dict[str, Picture]:
    """The figures by file name; none for rows without a diagnosis."""
    figures: dict[str, Picture] = {}
    diagnosed = [(row, row.diagnosis) for row in rows if row.diagnosis]
    if diagnosed:
        figures["epsilon.png"] = Picture("Accuracy over epsilon", _curves(diagnosed))
    for row, diagnosis in diagnosed:
        stem = (
            f"landscape_{re.sub(r'[^A-Za-z0-9]+', '_', pathlib.Path(row.workdir).resolve().name)}"
        )
        name = unused_name(f"{stem}_{row.checkpoint}", figures)
        figures[name] = Picture(f"Loss landscape: {row.title}", _landscape(row, diagnosis))
    return figures


def _curves(diagnosed: Sequence[tuple[Row, ReportedDiagnosis]]) -> bytes:
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
