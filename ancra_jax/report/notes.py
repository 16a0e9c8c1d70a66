"""What has to be said beneath the tables of a report."""

from collections.abc import Iterable, Sequence

from ancra_jax.attacks.diagnostics.checks import noticed_share
from ancra_jax.report.markdown import DAGGER
from ancra_jax.report.tables import _GATE, _of_unlike_examples
from ancra_jax.results.load import Run
from ancra_jax.results.names import (
    NATURAL,
    display_name,
    evaluate_command,
    is_autoattack,
    scenario_of,
)
from ancra_jax.results.rows import Row, SeedsRow

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


def caption(rows: Sequence[Row]) -> str:
    """What all rows share, in a sentence."""
    shared = []
    for name, text in (("Data", "{}"), ("Examples", "{} examples"), ("Epsilon", "epsilon {}")):
        values = {row.setting[name] for row in rows if row.setting[name]}
        if len(values) == 1:
            shared.append(text.format(*values))
    return f"Accuracy in % on the test split: {', '.join(shared)}." if shared else "Accuracy in %."


def notes(runs: Sequence[Run], rows: Sequence[Row], seeds_rows: Sequence[SeedsRow]) -> list[str]:
    """What a reader must know of the numbers, one Markdown sentence or two each."""
    evaluated = [row for row in rows if row.accuracy]
    lines = []
    if evaluated:
        lines.append(
            "**Worst case**: the examples that are classified correctly on the natural image and "
            "under every attack that the model was evaluated with, with a 95 % Wilson interval. "
            "Mean: over the PGD, FGSM, C&W and AutoAttack of its table, as far as they are there."
        )
    attacks = {name for row in evaluated for name in row.accuracy}
    if any(scenario_of(name) == "with_p" for name in attacks):
        lines.append("With p and without, the final logits decide what is correct.")
        if any(map(is_autoattack, attacks)):
            lines[-1] += " AutoAttack sees them alone: it is the same number in both tables."
    lines += _attack_sets(evaluated)
    for row in evaluated:
        lines += [f"{DAGGER} {row.title}: {text}." for text in row.fooled_attacks.values()]
        lines += [f"{row.title}: {text}" for text in row.warnings]
    if len({row.comparable for row in evaluated}) > 1:
        lines.append(
            "**The rows are not of one evaluation**: they differ in data set, epsilon or number of "
            "examples (see the columns above and the runs below). Compare only those that agree."
        )
    for row in evaluated:
        if len(row.examples) > 1:
            counts = ", ".join(f"{display_name(k)} {v}" for k, v in row.num_examples.items())
            lines.append(
                f"{row.title}: the attacks saw different numbers of examples ({counts}); the worst "
                f"case and the ladder are of the first {row.examples[0]}."
            )
    lines += [
        f"Rows of several seeds: mean ± sample standard deviation over the seeds "
        f"{', '.join(map(str, seeds.seeds))} of {seeds.label} ({seeds.checkpoint} checkpoint)."
        for seeds in seeds_rows
    ]
    chosen = {row.label for row in _of(runs, rows, "test") if row.checkpoint.startswith("best")}
    lines += [
        f"{label}: its best checkpoint was chosen on the test split, so that its numbers are "
        "optimistic."
        for label in sorted(chosen)
    ]
    lines += [line for run in runs for evaluation in run.evaluations for line in evaluation.notes]
    return [*lines, *_missing(runs, rows)]


def _attack_sets(rows: Sequence[Row]) -> Iterable[str]:
    """Which attacks the worst cases are of, said once where they are the same."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.worst_case:
            sets.setdefault(row.worst_case.attacks, []).append(row.title)
    for attacks, titles in sets.items():
        whose = "All rows" if len(sets) == 1 else "; ".join(titles)
        yield f"{whose}: worst case over {', '.join(map(display_name, attacks))}."
    if sets and not any(is_autoattack(name) for attacks in sets for name in attacks):
        yield (
            "No row was evaluated with AutoAttack: a stronger attack can only lower the worst case."
        )


def _missing(runs: Sequence[Run], rows: Sequence[Row]) -> Iterable[str]:
    """What has not been computed yet, and the command that does."""
    for row in rows:
        command = evaluate_command(row.workdir, row.checkpoint)
        if not row.accuracy:
            yield f"{row.title}: not evaluated yet. Run `{command}`."
        elif row.worst_case is None:
            what = "the natural accuracy" if NATURAL not in row.accuracy else "attacks"
            yield f"{row.title}: no worst case without {what}. Run `{command}`."
    for run in runs:
        if not run.curves:
            yield f"{run.label} (seed {run.config.seed}): no training metrics in {run.workdir}."


def _of(runs: Sequence[Run], rows: Sequence[Row], selection_split: str) -> list[Row]:
    workdirs = {run.workdir for run in runs if run.config.data.selection_split == selection_split}
    return [row for row in rows if row.workdir in workdirs and row.accuracy]
