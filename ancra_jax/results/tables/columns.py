"""The columns of all tables of results, and the tables that a report consists of.

A new column is one entry in a list. Its cell is a function of a row; ``Row`` and ``SeedsRow`` have
the same names for the same quantities.
"""

import dataclasses
from collections.abc import Sequence

from ancra_jax.results import names
from ancra_jax.results.names import ADAPTIVE, FINAL, WITH_HEADS, display_name
from ancra_jax.results.rows import Row, SeedsRow
from ancra_jax.results.statistics import WorstCase, mean_attacks
from ancra_jax.results.tables.table import (
    DAGGER,
    MISSING,
    Column,
    Markup,
    Table,
    TextColumn,
    build,
    escaped,
    text,
)

AnyRow = Row | SeedsRow

MASKS = {
    "final_is_last_mask": "argmax f = c_2",
    "masks_agree": "c_1 = c_2",
    "final_is_last_mask_adversarial": "argmax f = c_2 *",
    "masks_agree_adversarial": "c_1 = c_2 *",
    "last_mask_changes": "c_2 flipped *",
    "gradient_cosine": "Cosine",
}
"""What a defence says of its masks; a star marks adversarial images."""


def _worst_case(row: AnyRow) -> str:
    """Return the worst case with its interval, or its spread over seeds; no upper bound."""
    if row.upper_bound:
        return NOT_ATTACKED
    if not isinstance(row.worst_case, WorstCase):
        return Markup(f"**{text(row.worst_case)}**") if row.worst_case else MISSING
    low, high = map(text, row.worst_case.interval)
    return Markup(f"**{text(row.worst_case.accuracy)}** [{low}, {high}]")


def _seed(row: AnyRow) -> str:
    return str(row.seeds[0]) if len(row.seeds) == 1 else f"{len(row.seeds)} seeds"


def _setting(name: str) -> Column:
    return TextColumn(name, lambda row: row.setting[name], "differing")


IDENTITY = (
    TextColumn("Model", lambda row: row.label, "always"),
    TextColumn("Seed", _seed, "always"),
    TextColumn("Checkpoint", lambda row: row.checkpoint, "always"),
)
SETTING = tuple(map(_setting, ("Network", "Data", "Epsilon", "Examples")))
NOT_ATTACKED = "not attacked through its mask"
WORST_CASE = Column("Worst case", _worst_case, "always")


def _attack(attack: str, header: str) -> Column:
    """Return the accuracy under an attack, marked where it is above the natural accuracy."""
    return Column(
        header, lambda row: text(row.accuracy.get(attack), DAGGER * (attack in row.fooled_attacks))
    )


def _mean(scenario: str, header: str) -> Column:
    """Return the paper's mean, marked where one of its attacks is above the natural accuracy."""

    def cell(row: AnyRow) -> str:
        fooled = set(mean_attacks(row.accuracy, scenario)) & set(row.fooled_attacks)
        return text(row.mean.get(scenario), DAGGER * bool(fooled))

    return Column(header, cell)


def all_attacks(rows: Sequence[AnyRow], families: Sequence[str] = ()) -> list[Column]:
    """Return the worst case, natural accuracy and every attack, for one table of these rows.

    Given ``families``, only attacks of these are shown, and no means.
    """
    attacks = sorted({name for row in rows for name in row.accuracy}, key=names.attack_order)
    shown = [one for one in attacks if not families or names.parse(one).family in families]
    means = [] if families else [_mean(FINAL, "Mean"), _mean(WITH_HEADS, "Mean (heads)")]
    return [WORST_CASE, *(_attack(one, display_name(one)) for one in shown), *means]


def _of_scenario(rows: Sequence[AnyRow], scenario: str) -> list[Column]:
    attacks = {name for row in rows for name in row.accuracy if names.in_scenario(name, scenario)}
    ordered = sorted(attacks, key=lambda name: (name == ADAPTIVE, *names.attack_order(name)[2:]))
    columns = [_attack(one, display_name(one.removesuffix(names.HEADS))) for one in ordered]
    natural, mean = _attack(names.NATURAL, "Nat"), _mean(scenario, "Mean")
    return [*IDENTITY, *SETTING, WORST_CASE, natural, *columns, mean]


def _stage(name: str, header: str = "") -> Column:
    return Column(header or name, lambda row: row.stages.get(name))


FROM_CLAIM = (
    *IDENTITY,
    *SETTING,
    WORST_CASE,
    *map(_stage, ("Nat", "FGSM", "PGD", "APGD-CE", "APGD-T", "AutoAttack")),
    _stage("With p", "Auxiliary heads"),
    _stage("Adaptive"),
    TextColumn("Diagnosis", lambda row: row.diagnosis and row.diagnosis.verdict),
)
# The rows of this table are pairs: a row, and what one adaptive attack did.
ADAPTIVE_ATTACK = (
    TextColumn("Attack", lambda pair: pair[1]["name"]),
    Column("Tried on", lambda pair: pair[1]["attacked"]),
    Column("Broke", lambda pair: pair[1]["broken"]),
    Column("Left after it", lambda pair: pair[1]["accuracy_after"]),
    Column("By it alone", lambda pair: pair[1].get("own_accuracy")),
)
# The rows of this table are pairs: a checkpoint's name, and what was found in training.
SELECTION = (
    TextColumn("Checkpoint", lambda pair: pair[0]),
    Column("Epoch", lambda pair: pair[1].epoch),
    Column("Nat", lambda pair: pair[1].natural),
    Column("Robust", lambda pair: pair[1].robust),
)
# The rows of this table have a diagnosis.
DIAGNOSES = (
    *IDENTITY,
    TextColumn("Verdict", lambda row: Markup(f"**{escaped(row.diagnosis.verdict)}**")),
    TextColumn(
        "Checks that fired",
        lambda row: "; ".join(
            f"{check.name} ({check.value:.3g}, allowed {check.threshold:.3g})"
            for check in row.diagnosis.fired
        ),
        "always",
    ),
    TextColumn(
        "Not run", lambda row: "; ".join(c.name for c in row.diagnosis.checks if c.fired is None)
    ),
)
_FINDINGS = {None: "not run", False: "passed"}
# The rows of this table are the checks of one diagnosis.
CHECKS = (
    TextColumn("Check", lambda check: check.name),
    Column("Value", lambda check: None if check.value is None else f"{check.value:.4g}"),
    Column("Fires above", lambda check: f"{check.threshold:.4g}"),
    TextColumn("Finding", lambda check: _FINDINGS.get(check.fired, check.severity)),
)


def _of_pair(column: Column) -> Column:
    return dataclasses.replace(column, cell=lambda pair: column.cell(pair[0]))


def _mask(name: str) -> Column:
    if name in MASKS and name != "gradient_cosine":
        return Column(Markup(MASKS[name]), lambda row: row.masks.get(name))  # a share, in percent
    header = MASKS.get(name, name)
    return Column(header, lambda row: f"{row.masks[name]:.2f}" if name in row.masks else None)


def masks_table(rows: Sequence[Row], identity: Sequence[Column] = IDENTITY) -> Table:
    """Return what defences say of their part without a gradient, such as the masks."""
    shown = dict.fromkeys(name for row in rows for name in row.masks)
    columns = [*identity, *map(_mask, shown)]
    return build("What hides the gradient", columns, [row for row in rows if row.masks])


def tables_of(rows: Sequence[Row], seeds: Sequence[SeedsRow] = ()) -> list[Table]:
    """Return the tables of a report, those without rows left out: the worst case comes first."""
    both: list[AnyRow] = [*rows, *seeds]
    evaluated = [row for row in both if row.stages or row.diagnosis]
    heads = [row for row in both if any(names.parse(name).heads for name in row.accuracy)]
    broke = [(row, attack) for row in rows for attack in row.adaptive if attack["broken"]]
    adaptive = [*map(_of_pair, IDENTITY), *ADAPTIVE_ATTACK]
    tables = [
        build("From the claim to the worst case", FROM_CLAIM, evaluated),
        build("Attacks on the final logits", _of_scenario(both, FINAL), both),
        build("Attacks on the auxiliary heads too", _of_scenario(heads, WITH_HEADS), heads),
        build("Adaptive attacks that broke examples, in their order", adaptive, broke),
        masks_table(rows),
        build("Diagnostics", DIAGNOSES, [row for row in rows if row.diagnosis]),
    ]
    return [table for table in tables if table.rows]


def _provenance(name: str, header: str) -> Column:
    return TextColumn(header, lambda row: "; ".join(row.provenance[name]))


RUNS = (
    *IDENTITY,
    TextColumn("Step", lambda row: row.step),
    *(dataclasses.replace(column, shown="filled") for column in SETTING),
    _provenance("device", "Device"),
    _provenance("commit", "Commit"),
    _provenance("versions", "Versions"),
    _provenance("data_fingerprint", "Data fingerprint"),
    _provenance("seed", "Evaluation seed"),
    _provenance("created", "Evaluated"),
    TextColumn("Directory", lambda row: row.workdir),
)
"""What the rows are of, and where they come from."""


def caption(rows: Sequence[Row]) -> str:
    """Return what all rows share, in a sentence."""
    shared = []
    for name, words in (("Data", "{}"), ("Examples", "{} examples"), ("Epsilon", "epsilon {}")):
        values = {row.setting[name] for row in rows if row.setting[name]}
        if len(values) == 1:
            shared.append(words.format(*map(escaped, values)))
    return f"Accuracy in % on the test split: {', '.join(shared)}." if shared else "Accuracy in %."
