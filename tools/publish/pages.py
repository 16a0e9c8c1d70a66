"""What README.md and results/README.md say, computed from ``results/`` and nothing else."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ancra_jax.results.names import display_name
from ancra_jax.results.statistics import RESAMPLES
from ancra_jax.results.tables import Column, TextColumn, all_attacks, build
from tools.publish.comparison import Compared, Group, comparisons
from tools.publish.record import Published, file_name

NOTHING = "No row has been published yet."
_README_FAMILIES = ("Nat", "PGD", "AA", "Adaptive")
_HOW_TO_READ = (
    "Accuracy in % on test images, mean ± sample standard deviation over training seeds; of one "
    "seed the worst case has its 95 % Wilson interval. **Worst case**: right on the natural image "
    "and under every attack that the row was evaluated with, those that see through reverse "
    "attention included where they were run. (heads): the auxiliary heads are attacked too. "
    "Adaptive: the attacks made for a network's defence, where it has one."
)
_HOW_MEAN = "Mean: over PGD, FGSM, C&W and AutoAttack, where all four were run."
_HOW_COMPARED = (
    "Differences in points of 100, with 95 % intervals: rows are paired by training seed and test "
    f"image, and seeds and images resampled independently, {RESAMPLES:,} times. This takes the "
    "seeds as draws from all seeds and the images as draws from all images; three seeds say little "
    "of the former, and no interval speaks of another setting or of attacks that were not run. No "
    "correction is made for looking at many attacks. The worst cases of two rows are over the "
    "attacks that each was evaluated with: a network with reverse attention is also attacked in "
    "ways that another cannot be. Of a network without auxiliary heads, the attack on its final "
    "logits stands for one on them; adaptive attacks are compared only where both networks have a "
    "defence."
)
_HOW_CLAIMED = (
    "A claim of the paper stands here where the difference has the claimed sign and an interval "
    "without 0; that says nothing of its size, nor of the paper's setting where this is another. "
    "The paper has no worst case."
)
_HELPS = {1: "it helps", 0: "no difference is shown", -1: "it harms"}
_CLAIM = {1: "stands", 0: "is not shown", -1: "**is contradicted**"}

_LABEL = TextColumn("Method", lambda row: row.label, "always")
_SEEDS = TextColumn("Seeds", lambda row: ", ".join(map(str, row.seeds)), "always")
_COMPARED = (
    TextColumn("Difference", lambda one: one.title),
    TextColumn("Attack", lambda one: display_name(one.attack)),
    Column("Here", lambda one: f"**{_points(one)}**" if one.found.sign else _points(one)),
    Column("The paper", lambda one: None if one.claim is None else f"{one.claim:+.2f}"),
    TextColumn("The paper's claim", lambda one: _verdict(one)),
)
# The rows of this table are published ones.
_ADAPTIVE = (
    TextColumn("Method", lambda one: one.row.label),
    TextColumn("Seed", lambda one: one.row.seed),
    TextColumn(
        "Adaptive attacks: examples broken",
        lambda one: "; ".join(f"{a['name']} {a['broken']}" for a in one.row.adaptive),
    ),
    TextColumn("Diagnosis (checks that fired)", lambda one: _diagnosis(one.record["diagnosis"])),
)


def readme_section(groups: Sequence[Group]) -> str:
    """Return the table of README.md: the worst case first, and what the paper's attacks say."""
    if not groups:
        return NOTHING
    parts = []
    for group in groups:
        columns = [_LABEL, _SEEDS, *all_attacks(group.methods, _README_FAMILIES)]
        parts += [group.title, build("", columns, group.methods).markdown()]
        parts += _sentences(one for one in comparisons(group) if one.what == "ANCRA")
    return "\n\n".join([*parts, f"{_HOW_TO_READ} More: [results/README.md](results/README.md)."])


def results_page(groups: Sequence[Group]) -> str:
    """Return results/README.md: all attacks, the comparisons, and the commands."""
    parts = [
        "# Results",
        "Written by `python -m tools.publish` from the JSON files beside it; see "
        "[docs/results.md](../docs/results.md).",
    ]
    how = [f"{_HOW_TO_READ} {_HOW_MEAN}", _HOW_COMPARED, _HOW_CLAIMED]
    parts += how if groups else [NOTHING]
    for number, group in enumerate(groups, start=1):
        columns = [Column("Attack", _LABEL.cell), *all_attacks(group.methods)]
        every = build("", columns, group.methods).transposed()
        parts += [f"## Setting {number}", group.title, "### Every attack", every.markdown()]
        told = [one for one in group.published if one.row.adaptive or one.record["diagnosis"]]
        if told:
            table = build("", _ADAPTIVE, told)
            parts += ["### Adaptive attacks and diagnostics", table.markdown()]
        if found := comparisons(group):
            parts += [
                "### Does it help, and which claims of the paper stand?",
                build("", _COMPARED, found).markdown(),
                "\n".join(f"- {sentence}" for sentence in _sentences(found)),
            ]
        parts += ["### Rows", *itertools.chain.from_iterable(map(_row, group.published))]
    return "\n\n".join(parts) + "\n"


def _points(one: Compared) -> str:
    mean, low, high = (100 * value for value in (one.found.mean, one.found.low, one.found.high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _verdict(one: Compared) -> str:
    return "" if one.claim is None else _CLAIM[one.found.sign if one.claim > 0 else -one.found.sign]


def _diagnosis(record: Mapping[str, Any]) -> str:
    return f"{record['verdict']} ({', '.join(record['fired']) or 'none'})" if record else ""


def _sentences(found: Iterable[Compared]) -> Iterator[str]:
    """Yield what the numbers of each comparison of methods say."""
    methods = (one for one in found if one.what)
    for (what, title), ones in itertools.groupby(methods, key=lambda one: (one.what, one.title)):
        *attacks, worst = ones
        seeds = f"{worst.found.num_seeds} seed{'s' * (worst.found.num_seeds > 1)}"
        text = (
            f"**{what}** ({title}, {seeds}), worst case: **{_HELPS[worst.found.sign]}**, "
            f"{_points(worst)} points."
        )
        for sign, word in ((1, "More"), (-1, "Less")):
            names = [
                f"{display_name(one.attack)} ({100 * one.found.mean:+.2f})"
                for one in attacks
                if one.found.sign == sign
            ]
            if names:
                text += f" {word} accuracy: {', '.join(names)}."
        yield text


def _row(one: Published) -> list[str]:
    """Return the file and the commands of a row, and where it was computed."""
    record, name = one.record, file_name(one.record)
    trained = sorted({f"{start['device']}, {start['commit']}" for start in record["training"]})
    evaluation = record["evaluation"]
    return [
        f"**{one.row.label}, seed {one.row.seed}**: [{name}](rows/{name}). "
        f"Trained on {'; '.join(trained) or 'a device that was not noted'}; evaluated on "
        f"{', '.join(evaluation['device'])}, {', '.join(evaluation['commit'])}.",
        *(f"- {note}" for note in record["notes"]),
        "\n".join(["```", record["train"], *record["evaluate"], "```"]),
    ]
