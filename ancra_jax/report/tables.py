"""The ladder from the claim to the truth: what is left of the accuracy as the attacker grows."""

from collections.abc import Iterable, Sequence

from ancra_jax.report.markdown import MISSING, Table, cell, worst_cell
from ancra_jax.results.names import (
    FAMILIES,
    NATURAL,
    WITH_P,
    attacks_of,
    display_name,
)
from ancra_jax.results.rows import RUNGS, Row, SeedsRow
from ancra_jax.results.statistics import in_mean

COSINE = "gradient_cosine"
# Of natural images; a star marks adversarial ones.
_GATE = {
    "final_is_last_mask": "argmax f = c_2",
    "masks_agree": "c_1 = c_2",
    "final_is_last_mask_adversarial": "argmax f = c_2 *",
    "masks_agree_adversarial": "c_1 = c_2 *",
    "last_mask_changes": "c_2 flipped *",
    COSINE: "Cosine",
}


def ladder_table(rows: Sequence[Row], seeds: Sequence[SeedsRow]) -> Table:
    """The worst case first, then the rungs; the gap between them is the gap to the claim.

    The examples that they are of have a column where the caption does not say it.
    """
    evaluated = [row for row in rows if row.rungs or row.diagnosis]
    shown = [name for name in RUNGS if any(name in row.rungs for row in evaluated)]
    unlike = _of_unlike_examples(evaluated)
    lines = [
        [
            *(row.label, str(row.seed), row.checkpoint, *_examples(row, unlike)),
            *(worst_cell(row), *(cell(row.rungs.get(name)) for name in shown)),
            row.diagnosis.verdict if row.diagnosis else MISSING,
        ]
        for row in evaluated
    ]
    lines += [
        [
            *(one.label, f"{len(one.seeds)} seeds", one.checkpoint, *_examples(one, unlike)),
            *(worst_cell(one), *(cell(one.rungs.get(name)) for name in shown)),
            MISSING,
        ]
        for one in seeds
    ]
    headers = ["Model", "Seed", "Checkpoint", *["Examples"] * unlike, "Worst case [95 %]"]
    headers += [*shown, "Diagnosis"]
    numeric = len(shown) + 2 + unlike
    return Table("From the claim to the worst case", headers, lines, numeric=numeric)


def adaptive_table(rows: Sequence[Row]) -> Table | None:
    """Which adaptive attack broke how many; None if none was run."""
    lines = [
        [
            *(row.label, str(row.seed), row.checkpoint, attack["name"]),
            str(attack["attacked"]),
            str(attack["broken"]),
            cell(attack["accuracy_after"]),
            cell(attack.get("own_accuracy")),
        ]
        for row in rows
        for attack in row.adaptive
        if attack["broken"]
    ]
    headers = ["Model", "Seed", "Checkpoint", "Attack", "Tried on", "Broke", "Left after it"]
    title = "Adaptive attacks that broke examples, in their order"
    return Table(title, [*headers, "By it alone"], lines, numeric=4) if lines else None


def gate_table(rows: Sequence[Row]) -> Table | None:
    """How the part without a gradient behaves, of reverse attention its masks; None if unknown."""
    shown = dict.fromkeys(name for row in rows for name in row.gate)
    lines = [
        [
            *(row.label, str(row.seed), row.checkpoint),
            *(_gate_cell(name, row.gate.get(name)) for name in shown),
        ]
        for row in rows
        if row.gate
    ]
    headers = ["Model", "Seed", "Checkpoint", *(_GATE.get(name, name) for name in shown)]
    return Table("What hides the gradient", headers, lines, numeric=len(shown)) if lines else None


def checks_table(rows: Sequence[Row]) -> Table | None:
    """The checks of the diagnostics that fired, and the verdicts; None if none was run."""
    lines = [
        [
            *(row.label, str(row.seed), row.checkpoint, f"**{row.diagnosis.verdict}**"),
            "; ".join(_check(check) for check in row.diagnosis.fired) or "none",
            "; ".join(check.name for check in row.diagnosis.not_run) or "none",
        ]
        for row in rows
        if row.diagnosis
    ]
    headers = ["Model", "Seed", "Checkpoint", "Verdict", "Checks that fired", "Not run"]
    return Table("Diagnostics", headers, lines, numeric=0) if lines else None


def _of_unlike_examples(rows: Sequence[Row]) -> bool:
    return len({number for row in rows for number in row.examples}) > 1


def _examples(row: Row | SeedsRow, unlike: bool) -> list[str]:
    """How many the ladder is of, as a cell if it is shown."""
    return [str(row.examples[0]) if row.examples else MISSING] * unlike


def _gate_cell(name: str, value: float | None) -> str:
    if value is None or (name in _GATE and name != COSINE):
        return cell(value)
    return f"{value:.2f}"


def _check(check):
    return f"{check.name} ({check.value:.3g}, allowed {check.threshold:.3g})"


_SCENARIOS = {
    "without_p": "Without p: the attacker differentiates the final logits",
    "with_p": "With p: the attacker ascends the auxiliary heads too",
}


def accuracy_tables(rows: Sequence[Row], seeds_rows: Sequence[SeedsRow]) -> list[Table]:
    """The worst case first, then as in the paper: one table for each scenario there is."""
    # What the rows do not share gets a column.
    differing = [
        name
        for name in rows[0].setting
        if len({row.setting[name] for row in rows if row.setting[name]}) > 1
    ]
    tables = []
    for scenario, title in _SCENARIOS.items():
        attacks = attacks_of(scenario, {name for row in rows for name in row.accuracy}, FAMILIES)
        headers = [
            *("Model", "Seed", "Checkpoint"),
            *differing,
            *("Worst case [95 %]", "Nat"),
            *(display_name(name.removesuffix(WITH_P)) for name in attacks),
            "Mean",
        ]
        lines = [
            [
                *(row.label, str(row.seed), row.checkpoint),
                *_setting_cells(row, differing),
                *_cells(row, attacks, scenario),
            ]
            for row in rows
            if scenario == "without_p" or scenario in row.mean
        ]
        lines += [
            [
                *(seeds.label, f"{len(seeds.seeds)} seeds", seeds.checkpoint),
                *_setting_cells(seeds, differing),
                *_cells(seeds, attacks, scenario),
            ]
            for seeds in seeds_rows
            if scenario == "without_p" or scenario in seeds.mean
        ]
        if lines:
            tables.append(Table(title, headers, lines, numeric=len(attacks) + 3))
    return tables


def runs_table(rows: Sequence[Row]) -> Table:
    """What the rows are of, and where they come from."""
    lines = [
        [
            *(row.label, str(row.seed), f"{row.checkpoint}{_at_step(row)}"),
            *_setting_cells(row, row.setting),
            *("; ".join(row.provenance.get(name, [MISSING])) for name in ("device", "commit")),
            row.workdir,
        ]
        for row in rows
    ]
    headers = ["Model", "Seed", "Checkpoint", *rows[0].setting, "Device", "Commit", "Directory"]
    return Table("Runs", headers, lines, numeric=0)


def _setting_cells(row: Row | SeedsRow, names: Iterable[str]) -> list[str]:
    return [row.setting[name] or MISSING for name in names]


def _cells(row: Row | SeedsRow, attacks: Sequence[str], scenario: str) -> list[str]:
    fooled = {name for name in attacks if name in row.fooled_attacks}
    return [
        worst_cell(row),
        cell(row.accuracy.get(NATURAL)),
        *(cell(row.accuracy.get(name), name in fooled) for name in attacks),
        cell(row.mean.get(scenario), any(map(in_mean, fooled))),
    ]


def _at_step(row: Row) -> str:
    return "" if row.step is None else f", step {row.step}"
