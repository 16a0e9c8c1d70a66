"""The ladder from the claim to the truth: what is left of the accuracy as the attacker grows."""

from collections.abc import Iterable, Sequence

from ancra_jax.attacks.diagnostics_rows import noticed_share
from ancra_jax.report_names import evaluate_command
from ancra_jax.report_rows import Row, SeedsRow
from ancra_jax.report_rungs import RUNGS
from ancra_jax.report_table import MISSING, Table, cell, worst_cell

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
_GATE_NOTES = (
    "Masks of reverse attention: the final logits f see the features through the masks of the "
    "classes c_1 and c_2 that the auxiliary logits a_1 and a_2 choose; no gradient passes this "
    "choice. argmax f = c_2 and c_1 = c_2: on how many of the natural images, and (*) of the "
    "adversarial images of the examples that the adaptive attacks broke. Near 100 %, the final "
    "logits only repeat what was chosen before them.",
    "c_2 flipped: of how many broken examples the last mask is another class's on the adversarial "
    "image. Near 100 %, they were broken by the choice that no gradient passes. Cosine: between "
    "the input gradients of the margins of f and of a_2, natural images, mean. Near 1, attacks on "
    "f push the same way as attacks on a_2; near 0 or below they do not.",
)


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


def ladder_notes(rows: Sequence[Row]) -> Iterable[str]:
    """What a reader must know of the ladder."""
    evaluated = [row for row in rows if row.rungs]
    if _of_unlike_examples(evaluated):
        yield (
            "The ladder is of the first examples of the test split, as many as all attacks on the "
            "model saw (column Examples), so that its worst case is never above a single attack."
        )
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
    if any(name in _GATE for row in rows for name in row.gate):
        yield from _GATE_NOTES
    meanings = {
        check.name: check.meaning for row in rows if row.diagnosis for check in row.diagnosis.fired
    }
    for name, meaning in meanings.items():
        yield f"Diagnostics, {name}: {meaning}."
    for row in rows:
        if row.diagnosis and row.diagnosis.verdict == "trustworthy":
            count = row.diagnosis.num_examples
            yield (
                f"{row.title}: trustworthy as far as {count} examples tell; what concerns less "
                f"than {noticed_share(count):.1%} of them can go unnoticed."
            )
        if row.accuracy and row.diagnosis is None:
            command = f"{evaluate_command(row.workdir, row.checkpoint)} --suite=diagnostics"
            yield f"{row.title}: not diagnosed. Run `{command}`."


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
