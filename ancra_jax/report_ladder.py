"""The ladder from the claim to the truth: what is left of the accuracy as the attacker grows."""

from collections.abc import Iterable, Sequence

from ancra_jax.report_names import evaluate_command
from ancra_jax.report_rows import Row, SeedsRow
from ancra_jax.report_rungs import RUNGS
from ancra_jax.report_table import MISSING, Table, cell, worst_cell


def ladder_table(rows: Sequence[Row], seeds: Sequence[SeedsRow]) -> Table:
    """The worst case first, then the rungs; the gap between them is the gap to the claim."""
    evaluated = [row for row in rows if row.rungs or row.diagnosis]
    shown = [name for name in RUNGS if any(name in row.rungs for row in evaluated)]
    lines = [
        [
            *(row.label, str(row.seed), row.checkpoint, worst_cell(row)),
            *(cell(row.rungs.get(name)) for name in shown),
            row.diagnosis.verdict if row.diagnosis else MISSING,
        ]
        for row in evaluated
    ]
    lines += [
        [
            *(one.label, f"{len(one.seeds)} seeds", one.checkpoint, worst_cell(one)),
            *(cell(one.rungs.get(name)) for name in shown),
            MISSING,
        ]
        for one in seeds
    ]
    headers = ["Model", "Seed", "Checkpoint", "Worst case [95 %]", *shown, "Diagnosis"]
    return Table("From the claim to the worst case", headers, lines, numeric=len(shown) + 2)


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


def ladder_notes(rows: Sequence[Row]) -> Iterable[str]:
    """What a reader must know of the ladder."""
    evaluated = [row for row in rows if row.rungs]
    if any("With p" in row.rungs for row in evaluated):
        yield (
            "With p (in the first table): the examples that no attack on the auxiliary heads "
            "breaks. Adaptive: those that no attack made for the network's defence breaks."
        )
    for row in evaluated:
        if row.reverse_attention and "Adaptive" not in row.rungs:
            command = f"{evaluate_command(row.workdir, row.checkpoint)} --suite=adaptive"
            yield (
                f"{row.title}: **an upper bound**. Reverse attention hides its gradient, and no "
                f"attack made for that was run. Run `{command}`."
            )
    meanings = {
        check.name: check.meaning for row in rows if row.diagnosis for check in row.diagnosis.fired
    }
    for name, meaning in meanings.items():
        yield f"Diagnostics, {name}: {meaning}."
    for row in rows:
        if row.accuracy and row.diagnosis is None:
            command = f"{evaluate_command(row.workdir, row.checkpoint)} --suite=diagnostics"
            yield f"{row.title}: not diagnosed. Run `{command}`."


def _check(check):
    return f"{check.name} ({check.value:.3g}, allowed {check.threshold:.3g})"
