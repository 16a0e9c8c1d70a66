"""Histograms of features (the paper's Figures 1 and 3), maps of features, figures of heads."""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ancra_jax.report.figures import ADAPTIVE, COLOURS, HEADS, NATURAL, STYLE
from ancra_jax.results.features import COSINE, FEATURE_TITLES, L2, OTHERS, StoredFeatures

_PANELS = (
    ("(a) Natural and other classes", COSINE, OTHERS),
    ("(b) Natural and other classes", L2, OTHERS),
    ("(c) Natural and own adversarial", COSINE, ""),
    ("(d) Natural and own adversarial", L2, ""),
)
_AXES = {COSINE: "Cosine similarity", L2: "L2 distance / mean norm of natural features"}
_LINE = 44  # characters of the legend that fit in a column
_LOWEST = 1e-6  # losses are not drawn below
_SMALL = 1e-3  # shares are drawn as at least this, so that 0 can be seen


@matplotlib.rc_context(STYLE)
def draw_features(
    models: Sequence[tuple[str, StoredFeatures]], number: int | None = None
) -> Figure:
    """Draw histograms of cosine similarity and L2 distance, one line a model and kind of features.

    Args:
      models: by the name in the legend.
      number: the class of the natural examples; None for all.
    """
    figure = Figure(figsize=(8.6, 6.2), layout="constrained")
    handles: dict[str, Line2D] = {}
    for axes, (title, measure, pairs) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for colour, (label, found) in zip(itertools.cycle(COLOURS), models, strict=False):
            for feature in found.measured:
                for attack in [pairs] if pairs else found.attacks:
                    style: Any = ":" if attack == "adversarial_heads" else "-"
                    if len(found.measured) > 1 and feature == found.measured[0]:
                        style = "-." if style == ":" else "--"
                    _histogram(axes, found, feature, measure, attack, number, colour, style)
                    name = f"{label}, {FEATURE_TITLES.get(feature, feature)}"
                    if attack == "adversarial_heads":
                        name += ", attacked on all heads"
                    handles.setdefault(name, Line2D([], [], color=colour, linestyle=style))
        axes.set_title(title)
        axes.set_xlabel(_AXES[measure])
        axes.set_ylabel("Density of pairs")
        axes.set_ylim(bottom=0)
    figure.suptitle(_heading(models, number), x=0.01, ha="left", fontsize=12)
    columns = max(1, min(3, 2 * _LINE // max(map(len, handles))))
    figure.set_figheight(6.2 + 0.26 * math.ceil(len(handles) / columns))
    lines = list(handles.values())
    figure.legend(lines, list(handles), loc="outside lower center", ncols=columns, handlelength=3)
    return figure


def _heading(models: Sequence[tuple[str, StoredFeatures]], number: int | None) -> str:
    """Return which examples and how many pairs the histograms are of."""
    found = {}
    for label, one in models:
        feature, attack = one.measured[0], one.attacks[0]
        pairs = one.histogram(feature, COSINE, OTHERS, number)[1].sum()
        own = one.histogram(feature, COSINE, attack, number)[1].sum()
        of = f"class {one.classes[number]}" if number is not None else "all classes"
        found[label] = (
            f"{of}: {own:,} natural examples of {sum(one.counts):,}, {pairs:,} pairs in (a)"
        )
    if len(set(found.values())) == 1:
        text = next(iter(found.values()))
        return f"{text[:1].upper()}{text[1:]}"
    return "\n".join(f"{label}: {text}" for label, text in found.items())


def _histogram(
    axes: Axes,
    found: StoredFeatures,
    feature: str,
    measure: str,
    pairs: str,
    number: int | None,
    colour: str,
    style: Any,
) -> None:
    """Draw the density, of about as many bins as the numbers allow (Rice's rule), at least 24."""
    edges, counts = found.histogram(feature, measure, pairs, number)
    wanted = max(24.0, 2 * counts.sum() ** (1 / 3))
    bins = len(counts)
    join = next(one for one in range(1, bins + 1) if bins % one == 0 and bins / one <= wanted)
    counts, edges = counts.reshape(-1, join).sum(axis=1), edges[::join]
    if measure == L2:
        edges = edges / max(found.norm(feature, number), 1e-12)
    density = counts / max(counts.sum(), 1) / np.diff(edges)
    axes.stairs(density, edges, color=colour, linestyle=style, linewidth=1.6)
    if style == "-":
        axes.stairs(density, edges, color=colour, fill=True, alpha=0.12)


@matplotlib.rc_context(STYLE)
def draw_map(maps: Mapping[str, Mapping[str, np.ndarray]], classes: Sequence[str]) -> Figure:
    """Draw two-dimensional maps, a panel for each model: dots natural, crosses adversarial.

    Args:
      maps: by the model's name, ``natural`` and ``adversarial`` [examples, 2] and ``labels``.
      classes: their names; the number of a class stands at the middle of its natural examples.
    """
    columns = min(2, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(4.3 * columns, 4.3 * rows + 0.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in panels[len(maps) :]:
        axes.remove()
    for axes, (label, one) in zip(panels, maps.items(), strict=False):
        natural, labels = one["natural"], one["labels"]
        colours = np.array(COLOURS)[labels % len(COLOURS)]
        axes.scatter(*natural.T, s=10, color=colours, linewidths=0)
        axes.scatter(*one["adversarial"].T, s=14, color=colours, marker="x", linewidths=0.8)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        for c in np.unique(labels):
            middle = np.median(natural[labels == c], axis=0)
            axes.text(*middle, str(c), ha="center", va="center", weight="bold", bbox=box)
        axes.set_title(label)
        axes.set(xticks=[], yticks=[])
    marks = {"natural": "o", "PGD-10": "x"}
    handles = [
        Line2D([], [], color="grey", marker=mark, linestyle="", label=name)
        for name, mark in marks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def draw_heads(models: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """Draw the training-phase losses of every head, and how often it follows a forced mask.

    Args:
      models: by name, what ``evaluate.heads.measure_heads`` returns.
    """
    figure = Figure(figsize=(8.6, 3.3 * len(models) + 0.4), layout="constrained")
    losses = {"natural": "CE, natural", "adversarial": "CE, adversarial", "kl": "KL"}
    follows = {
        "follows_on_images": "follows a wrong mask, images",
        "follows_on_noise": "follows a wrong mask, noise",
        "negatives_matched": "predicts the negative as the anchor",
    }
    for (label, found), (left, right) in zip(
        models, np.reshape(figure.subplots(len(models), 2), (-1, 2)), strict=True
    ):
        _bars(left, found["heads"], losses, _LOWEST, 1)
        left.set_yscale("log")
        left.set_ylabel("Loss, training phase (nats)")
        left.set_title(f"{label}: {found['num_examples']} examples")
        _bars(right, found["heads"], follows, 100 * _SMALL, 100)
        right.set_ylim(0, 105)
        right.set_ylabel("Share (%)")
    for axes in (left, right):
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return figure


def _bars(
    axes: Axes, heads: Sequence[Mapping[str, Any]], keys: Mapping[str, str], low: float, scale: int
) -> None:
    """Draw a group of bars with intervals for every head; numbers that are missing are left out."""
    shown = {key: title for key, title in keys.items() if heads[0][key] is not None}
    places: Int[np.ndarray, "heads"] = np.arange(len(heads))
    for at, ((key, title), colour) in enumerate(
        zip(shown.items(), (NATURAL, HEADS, ADAPTIVE), strict=False)
    ):
        numbers: Float[np.ndarray, "heads 3"] = scale * np.array(
            [[head[key][one] for one in ("value", "low", "high")] for head in heads]
        )
        values, ends = np.maximum(numbers[:, 0], low), np.maximum(numbers[:, 1:], low)
        errors = np.abs(ends - values[:, None]).T
        axes.bar(places + 0.27 * (at - 1), values, 0.25, yerr=errors, label=title, color=colour)
    axes.set_xticks(places, [head["title"] for head in heads])
    axes.tick_params(axis="x", length=0)


@matplotlib.rc_context({**STYLE, "svg.hashsalt": "ancra-jax"})
def files_of(figure: Figure) -> dict[str, bytes]:
    """Return a figure as files, by their endings."""
    files = {}
    for ending, metadata in (("svg", {"Date": None}), ("png", {})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, metadata=metadata, dpi=150)
        files[ending] = buffer.getvalue()
    return files
