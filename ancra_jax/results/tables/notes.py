"""What has to be said beneath tables of results, in sentences of Markdown."""

import itertools
from collections.abc import Iterable, Sequence

from ancra_jax.attacks.diagnostics.api import noticed_share
from ancra_jax.results.names import ADAPTIVE, AUTOATTACK, NATURAL, display_name, parse
from ancra_jax.results.rows import Row, SeedsRow
from ancra_jax.results.store import adaptive_flags, evaluate_all, evaluate_command
from ancra_jax.results.tables.columns import MASKS, NOT_ATTACKED
from ancra_jax.results.tables.table import DAGGER, code, escaped

_MASKS = (
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

RELEASED_NOTE = (
    "(released): as the authors' published code evaluates, not as the paper says: FGSM from a "
    "random point; C&W with 20 steps, of 200 images together until their margins sum to 0."
)


def reading_notes(rows: Sequence[Row], seeds: Sequence[SeedsRow]) -> Iterable[str]:
    """Yield what the columns mean, and which rows can be compared."""
    evaluated = [row for row in rows if row.accuracy]
    if evaluated:
        yield _worst_case(evaluated)
    if any(row.upper_bound for row in evaluated):
        yield (
            f"**{NOT_ATTACKED.capitalize()}**: reverse attention hides its gradient from every "
            "attack that was run; what they leave is an upper bound, and no worst case."
        )
    if any(row.mean for row in evaluated):
        yield (
            "Mean: over PGD, FGSM, C&W and the standard AutoAttack of its table, where all four "
            "were run; of several numbers of steps the largest counts."
        )
    if any(parse(name).heads for row in evaluated for name in row.accuracy):
        yield (
            "In both scenarios the final logits decide what is correct. Column Auxiliary heads: "
            "the examples that no attack on the auxiliary heads breaks."
        )
    if any(parse(name).released for row in evaluated for name in row.accuracy):
        yield RELEASED_NOTE
    if len({row.comparable for row in evaluated}) > 1:
        yield (
            "**The rows are not of one evaluation**: they differ in data set, epsilon or number of "
            "examples (see the columns above and the runs below). Compare only those that agree."
        )
    for one in seeds:
        yield (
            "Rows of several seeds: mean ± sample standard deviation over the seeds "
            f"{', '.join(map(str, one.seeds))} of {escaped(one.label)} ({one.checkpoint} "
            "checkpoint)."
        )
    if any(name in MASKS for row in rows for name in row.masks):
        yield from _MASKS
    checks = [check for row in rows if row.diagnosis for check in row.diagnosis.fired]
    for name, meaning in {check.name: check.meaning for check in checks}.items():
        yield escaped(f"Diagnostics, {name}: {meaning}.")


def _worst_case(rows: Sequence[Row]) -> str:
    """Return what it means, over which attacks it is, and which rows were attacked otherwise."""
    sets: dict[tuple[str, ...], list[str]] = {}  # the attacks, and of which rows
    for row in rows:
        if row.worst_case:
            sets.setdefault(row.worst_case.attacks, []).append(escaped(row.title))
    note = (
        "**Worst case**: the examples that are classified correctly on the natural image and under "
        "every attack, with a 95 % Wilson interval"
    )
    first = next(iter(sets), ())
    parts = [_names(first)] if first else []
    for attacks, titles in list(sets.items())[1:]:
        more = set(first) <= set(attacks)
        added = [name for name in attacks if not more or name not in first]
        parts.append(f"of {', '.join(titles)} {'also ' * more}{_names(added)}")
    return f"{note}: {'; '.join(parts)}." if parts else f"{note}."


def not_run(rows: Sequence[Row], *, features: bool = False) -> Iterable[str]:
    """Yield what has not been computed yet, of all rows at once, and the command for it.

    Distances of features count where there is room for their figure.
    """
    lacks = [dict(_lacks(row, features)) for row in rows]
    parts = []
    for what in dict.fromkeys(itertools.chain(*lacks)):
        titles = [escaped(row.title) for row, one in zip(rows, lacks, strict=True) if what in one]
        which = "all models" if len(titles) == len(rows) else ", ".join(titles)
        parts.append(what if len(rows) == 1 else f"{what} ({which})")
    if not parts:
        return
    needed = {suite for one in lacks for suite in one.values()}
    suite = needed.pop() if len(needed) == 1 else "all"
    made = [row.evaluation.records[ADAPTIVE] for row in rows if ADAPTIVE in row.accuracy]
    budgets = {one["settings"].get("budget", "standard") for one in made}
    usual = {"settings": {"budget": budgets.pop()}} if len(budgets) == 1 else {}
    commands: dict[tuple[str, str], dict[str, None]] = {}  # by checkpoint and flags, directories
    for row in (row for row, one in zip(rows, lacks, strict=True) if one):
        # The results that are there are kept only by a command with their settings.
        records = row.evaluation.records
        flags = f" --suite={suite}" * bool(suite)
        if suite == "all":
            flags += adaptive_flags(records.get(ADAPTIVE, usual))
        if len(row.examples) == 1:
            flags += f" --num_examples={row.examples[0]}"
        seeds = {record["seed"] for record in records.values()}
        if len(seeds) == 1 and seeds != {0}:
            flags += f" --seed={min(seeds)}"
        commands.setdefault((row.checkpoint, flags), {})[row.workdir] = None
    shown = ", ".join(
        code(evaluate_all(list(workdirs), checkpoint, flags))
        for (checkpoint, flags), workdirs in commands.items()
    )
    yield f"**Not run**: {'; '.join(parts)}. Run {shown}."


def _lacks(row: Row, features: bool) -> Iterable[tuple[str, str]]:
    """Yield what was not computed of a row, and the suite that has it; '' is the default."""
    if not row.accuracy:
        yield "any evaluation", ""
        return
    if NATURAL not in row.accuracy:
        yield "natural images", ""
    elif not row.worst_case and not row.upper_bound:
        yield "attacks", ""
    if row.upper_bound:
        yield "attacks through its mask", "adaptive"
    if not any(parse(name).family == "AA" for name in row.accuracy):
        yield "AutoAttack", "autoattack"
    if not row.diagnosis:
        yield "diagnostics", "diagnostics"
    if features and not row.evaluation.features:
        yield "features", "features"


def row_notes(row: Row) -> Iterable[str]:
    """Yield what makes the numbers of a row less than they seem."""
    command = evaluate_command(row.workdir, row.checkpoint)
    yield from map(escaped, row.evaluation.notes)
    for text in row.fooled_attacks.values():
        yield f"{DAGGER} {escaped(text)}."
    yield from map(escaped, row.warnings)
    if len(row.examples) > 1:
        counts = ", ".join(
            f"{escaped(display_name(k))} {count}" for k, count in row.num_examples.items()
        )
        yield (
            f"the attacks saw different numbers of examples ({counts}); the worst case, and the "
            f"table from the claim to it, are of the first {row.examples[0]}."
        )
    yield from _precisions(row)
    if row.checkpoint.startswith("best") and row.config.data.selection_split == "test":
        yield "the checkpoint was chosen on the test split, so that its numbers are optimistic."
    if {ADAPTIVE, AUTOATTACK} <= row.accuracy.keys():
        left, adaptive = (
            row.evaluation.correct[name][: row.examples[0]] for name in (AUTOATTACK, ADAPTIVE)
        )
        yield (
            f"adaptive attacks break {(left & ~adaptive).sum()} of the {left.sum()} examples that "
            "AutoAttack leaves."
        )
    if not row.diagnosis:
        return
    count = row.diagnosis.num_examples
    newer = [
        name
        for name, number in row.num_examples.items()
        if number >= count and name not in row.diagnosis.compared_with
    ]
    if newer:
        yield (
            f"the diagnosis was made before the results of {_names(newer)}; "
            f"`{command} --suite=diagnostics --num_examples={count} --force` compares them too."
        )
    if row.diagnosis.verdict == "trustworthy":
        yield (
            f"trustworthy as far as {count} examples tell; what concerns less than "
            f"{noticed_share(count):.1%} of them can go unnoticed."
        )


def _precisions(row: Row) -> Iterable[str]:
    """Yield which attacks searched in less than the highest precision, and what that cost."""
    records = row.evaluation.records
    precisions = {name: one.get("search_precision", "highest") for name, one in records.items()}
    for precision in sorted(set(precisions.values()) - {"highest"}):
        names = [name for name, one in precisions.items() if one == precision]
        denied = sum(records[name].get("denied", 0) for name in names)
        yield (
            f"{_names(names)}: searched in the precision '{precision}', judged in 'highest', which "
            f"denied {denied} successes."
        )


def _names(attacks: Iterable[str]) -> str:
    return escaped(", ".join(map(display_name, attacks)))
