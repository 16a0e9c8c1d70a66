"""Exclusion and alignment of features as a table."""

from collections.abc import Sequence
from typing import NamedTuple

from ancra_jax.results.features import COSINE, FEATURE_TITLES, L2, OTHERS, StoredFeatures
from ancra_jax.results.names import NATURAL
from ancra_jax.results.tables.table import Column, Table, TextColumn, build, with_interval

ATTACK_TITLES = {
    NATURAL: "natural",
    "adversarial": "PGD-10",
    "adversarial_heads": "PGD-10 (heads)",
}
NOTES = (
    "Others: between a natural example and natural ones of other classes (exclusion: far away is "
    "better). Own: between a natural example and its own adversarial one (alignment: near is "
    "better). Brackets: 95 % intervals of a bootstrap over the examples.",
    "Overlap, in %: how often an example of another class is nearer than the own adversarial one. "
    "L2 distances depend on how large the features of a network are; overlap and cosine do not.",
    "Accuracy: under the attack that made the adversarial examples. Where it is high because the "
    "network hides its gradient, the alignment is that of an attack that failed.",
)


class _Line(NamedTuple):
    """A row of the table."""

    label: str
    found: StoredFeatures
    feature: str
    attack: str
    number: int | None  # of the class; None for all


def features_table(
    models: Sequence[tuple[str, StoredFeatures]], number: int | None = None
) -> Table:
    """Return the table of models by name, for natural examples of one class (None: of all)."""
    lines = [
        _Line(label, found, feature, attack, number)
        for label, found in models
        for feature in found.measured
        for attack in found.attacks
    ]
    which = "all classes" if number is None else f"class {models[0][1].classes[number]}"
    return build(f"Features, {which}", _COLUMNS, lines)


def _mean(measure: str, header: str, others: bool) -> Column:
    def cell(line: _Line) -> str:
        pairs = OTHERS if others else line.attack
        return with_interval(*line.found.mean(line.feature, measure, pairs, line.number), ".3f")

    return Column(header, cell)


def _overlap(measure: str, header: str) -> Column:
    def cell(line: _Line) -> str:
        found = line.found.overlap(line.feature, measure, line.attack, line.number)
        return with_interval(*found, ".1f", 100)

    return Column(header, cell)


_COLUMNS = (
    TextColumn("Model", lambda line: line.label, "always"),
    TextColumn("Features", lambda line: FEATURE_TITLES.get(line.feature, line.feature)),
    TextColumn("Attack", lambda line: ATTACK_TITLES.get(line.attack, line.attack)),
    Column("Accuracy", lambda line: line.found.record["accuracy_under"][line.attack]),
    _mean(COSINE, "Cosine, others", True),
    _mean(COSINE, "Cosine, own", False),
    _overlap(COSINE, "Overlap"),
    _mean(L2, "L2, others", True),
    _mean(L2, "L2, own", False),
    _overlap(L2, "Overlap (L2)"),
)
