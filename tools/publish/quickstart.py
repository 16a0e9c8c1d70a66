"""The README's block on the quickstart: one table, its notes, and a picture, from its runs."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ancra_jax.errors import UsageError
from ancra_jax.report.figures import COLOURS
from ancra_jax.results.load import Run, load_runs
from ancra_jax.results.rows import Row, rows_of
from ancra_jax.results.tables import caption, not_run, reading_notes, row_notes, tables_of

METHODS = ("natural", "trades", "trades_ancra")
PICTURE = "docs/images/quickstart.png"
_ALT = "Robust accuracy while training, and natural, PGD and worst-case accuracy after it"
_BARS = ("#BBBBBB", "#56B4E9", "#B22222")  # none that a curve beside them has
_WIDTH = 0.28  # of a bar
_STYLE: Any = {
    **{"font.size": 12, "figure.dpi": 150, "lines.linewidth": 2, "legend.frameon": False},
    **{"axes.grid": True, "axes.grid.axis": "y", "grid.color": "#DDDDDD", "axes.axisbelow": True},
    **{"axes.titlelocation": "left", "axes.spines.right": False, "axes.spines.top": False},
}


def section(directory: str) -> tuple[str, bytes]:
    """Return the Markdown and the picture of the runs that ``launch/quickstart.sh`` has left.

    Raises:
      UsageError: a run is missing, or has no worst case.
    """
    runs = load_runs([f"{directory.rstrip('/')}/{method}" for method in METHODS])
    rows = [replace(row, masks={}) for row in rows_of(runs)]  # the table of masks is not shown
    for row in rows:
        if row.worst_case is None:
            raise UsageError(f"--quickstart={directory}: {row.workdir} has no worst case")
    table, *_ = tables_of(rows)
    notes = [*reading_notes(rows, [])]
    notes += [f"{row.title}: {note}" for row in rows for note in row_notes(row)]
    notes += not_run(rows, features=True)  # as the report, which has room for their figure
    listed = "\n".join(f"- {note}" for note in notes)
    parts = [caption(rows), table.markdown(), listed, f"![{_ALT}]({PICTURE})"]
    return "\n\n".join(parts), _draw(runs, rows)


@matplotlib.rc_context(_STYLE)
def _draw(runs: Sequence[Run], rows: Sequence[Row]) -> bytes:
    """Draw the curves by which checkpoints were chosen, and what is left of those, as PNG."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(2, 3), sharey=True)
    for run, row, colour in zip(runs, rows, COLOURS[: len(rows)], strict=True):
        found = [one for one in run.curves if one["kind"] == "selection"]
        curves.plot(
            [one["epoch"] for one in found],
            [100 * one["robust_accuracy"] for one in found],
            color=colour,
            label=run.label,
            marker="o",
            markevery=[at for at, one in enumerate(found) if one["step"] == row.step],
        )
    curves.set(title="Robust accuracy, held-out images (%)", xlabel="Epoch", ylim=(0, 105))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.legend(loc="upper left")
    worst = [row.worst_case for row in rows if row.worst_case]
    left = {
        "Natural": [row.stages["Nat"] for row in rows],
        "PGD on the final logits": [row.stages["PGD"] for row in rows],
        "Worst case": [one.accuracy for one in worst],
    }
    errors = np.abs([np.subtract(one.interval, one.accuracy) for one in worst]).T
    for number, (name, accuracies) in enumerate(left.items()):
        drawn = bars.bar(
            np.arange(len(rows)) + _WIDTH * (number - 1),
            100 * np.array(accuracies),
            width=0.95 * _WIDTH,
            color=_BARS[number],
            label=name,
            yerr=100 * errors if name == "Worst case" else None,
        )
        bars.bar_label(drawn, fmt="%.1f", padding=2)
    bars.set_title(f"Accuracy, {rows[0].examples[0]} test images (%)")
    bars.set_xticks(range(len(rows)), [row.label for row in rows])
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower right", ncols=len(left))
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return buffer.getvalue()
