"""What README.md and results/README.md say, computed from ``results/`` and nothing else."""

from collections.abc import Iterator, Sequence

from ancra_jax.report.markdown import MISSING, Table, mean_and_deviation
from ancra_jax.results.names import ADAPTIVE, FAMILIES, WITH_P, attack_order, display_name
from ancra_jax.results.statistics import RESAMPLES
from tools.publish.claims import claims_table
from tools.publish.comparison import COMPARISONS, Comparison, Difference, difference
from tools.publish.groups import WORST_CASE, Group, accuracies, correct_under
from tools.publish.record import Published, file_name

NOTHING = "No row has been published yet."
_README_FAMILIES = ("Nat", "PGD", "AA", "Adaptive")
_HOW_TO_READ = (
    "Accuracy in % on test images, mean ± sample standard deviation over training seeds; of one "
    "seed the worst case has its 95 % Wilson interval. **Worst case**: right on the natural image "
    "and under every attack that the row was evaluated with, those that see through reverse "
    "attention included where they were run. (p): the auxiliary heads are attacked too. Adaptive: "
    "the attacks made for a network's defence, where it has one."
)
_HOW_COMPARED = (
    "Differences in points of 100, with 95 % intervals: rows are paired by training seed and test "
    f"image, and seeds and images resampled independently, {RESAMPLES:,} times. This takes the "
    "seeds as draws from all seeds and the images as draws from all images; three seeds say little "
    "of the former, and no interval speaks of another setting or of attacks that were not run. No "
    "correction is made for looking at many attacks. The worst cases of two rows are over the "
    "attacks that each was evaluated with: a network with reverse attention is also attacked in "
    "ways that another cannot be. With p, a network without auxiliary heads is attacked as "
    "without; adaptive attacks are compared only where both networks have a defence."
)
_HOW_CLAIMED = (
    "Differences in points of 100. A claim stands here where the difference has the claimed sign "
    "and an interval without 0; that says nothing of its size, nor of the paper's setting where "
    "this is another. The paper has no worst case."
)


def readme_section(groups: Sequence[Group]) -> str:
    """The table of README.md: the worst case first, and what the paper's attacks say."""
    if not groups:
        return NOTHING
    parts = []
    for group in groups:
        attacks = [name for name in _ordered(group) if _family(name) in _README_FAMILIES]
        parts += [group.title, _accuracy_table(group, attacks).markdown()]
        found = _differences(group)
        parts += [sentence for one, sentence in _sentences(found) if one.what == "ANCRA"]
    return "\n\n".join([*parts, f"{_HOW_TO_READ} More: [results/README.md](results/README.md)."])


def results_page(groups: Sequence[Group]) -> str:
    """results/README.md: all attacks, the comparisons, and the commands."""
    head = [
        "# Results",
        "Written by `python -m tools.publish` from the JSON files beside it; see "
        "[docs/results.md](../docs/results.md).",
    ]
    if not groups:
        return "\n\n".join([*head, NOTHING]) + "\n"
    parts = [*head, _HOW_TO_READ, _HOW_COMPARED]
    for number, group in enumerate(groups, start=1):
        parts += [f"## Setting {number}", group.title, "### Every attack", _ladder(group)]
        parts += [*_adaptive(group), *_comparisons(group)]
        if claims := claims_table(group):
            parts += ["### Which claims of the paper stand?", _HOW_CLAIMED, claims]
        parts += ["### Rows", *_rows(group)]
    return "\n\n".join(parts) + "\n"


def _ordered(group: Group) -> list[str]:
    return sorted(group.attacks, key=lambda name: attack_order(name, FAMILIES))


def _family(attack: str) -> str:
    return display_name(attack.removesuffix(WITH_P)).partition("-")[0]


def _accuracy_table(group: Group, attacks: Sequence[str]) -> Table:
    headers = ["Method", "Seeds", "Worst case", *map(display_name, attacks)]
    rows = [
        [label, _seeds(row), _worst_case(row), *(_accuracy(row, attack) for attack in attacks)]
        for label, row in group.rows.items()
    ]
    return Table("", headers, rows, numeric=len(attacks) + 1)


def _ladder(group: Group) -> str:
    """Attacks from above to below, down to the worst case; a column for each method."""
    rows = [
        [display_name(attack), *(_accuracy(row, attack) for row in group.rows.values())]
        for attack in _ordered(group)
    ]
    rows.append(["**Worst case**", *(_worst_case(row) for row in group.rows.values())])
    return Table("", ["Attack", *group.rows], rows, numeric=len(group.rows)).markdown()


def _adaptive(group: Group) -> list[str]:
    """What the adaptive attacks broke, after AutoAttack, and what the diagnostics say."""
    rows = []
    for label, row in group.rows.items():
        for one in row:
            broke = [f"{attack['name']} {attack['broken']}" for attack in one.record[ADAPTIVE]]
            diagnosis = one.record["diagnosis"]
            fired = diagnosis.get("fired") or ["none"]
            verdict = f"{diagnosis['verdict']} ({', '.join(fired)})" if diagnosis else MISSING
            if broke or diagnosis:
                seed = str(one.record["seed"])
                rows.append([label, seed, "; ".join(broke) or MISSING, verdict])
    headers = [
        "Method",
        "Seed",
        "Adaptive attacks: examples broken",
        "Diagnosis (checks that fired)",
    ]
    table = Table("", headers, rows, numeric=0)
    return ["### Adaptive attacks and diagnostics", table.markdown()] if rows else []


def _accuracy(row: Sequence[Published], attack: str) -> str:
    ran = [one for one in row if attack in one.correct and correct_under(one, attack) is not None]
    return mean_and_deviation(accuracies(ran, attack)) if ran else MISSING


def _worst_case(row: Sequence[Published]) -> str:
    text = f"**{mean_and_deviation(accuracies(row, WORST_CASE))}**"
    if len(row) > 1:
        return text
    low, high = row[0].record["worst_case"]["interval"]
    return f"{text} [{100 * low:.2f}, {100 * high:.2f}]"


def _seeds(row: Sequence[Published]) -> str:
    return ", ".join(str(one.record["seed"]) for one in row)


Differences = dict[Comparison, dict[str, Difference | None]]


def _differences(group: Group) -> Differences:
    """By comparison and attack, the worst case included; None where an attack is missing."""
    attacks = (*_ordered(group), WORST_CASE)
    found = {one: {a: difference(group, one, a) for a in attacks} for one in COMPARISONS}
    return {one: differences for one, differences in found.items() if differences[WORST_CASE]}


def _comparisons(group: Group) -> list[str]:
    """The table of differences, and what it says."""
    found = _differences(group)
    if not found:
        return []
    attacks = [a for a in _ordered(group) if any(of[a] for of in found.values())]
    rows = [
        [display_name(attack), *(_difference(of[attack]) for of in found.values())]
        for attack in (*attacks, WORST_CASE)
    ]
    headers = ["Attack", *(f"{one.what}: {one.title}" for one in found)]
    return [
        "### Does it help?",
        Table("", headers, rows, numeric=len(found)).markdown(),
        "\n".join(f"- {sentence}" for _, sentence in _sentences(found)),
    ]


def _difference(found: Difference | None) -> str:
    if found is None:
        return MISSING
    return f"**{found}**" if found.sign else str(found)


_VERDICTS = {1: "it helps", 0: "no difference is shown", -1: "it harms"}


def _sentences(found: Differences) -> Iterator[tuple[Comparison, str]]:
    """What the numbers of each comparison say."""
    for one, differences in found.items():
        worst = differences[WORST_CASE]
        assert worst is not None
        seeds = f"{worst.num_seeds} seed{'s' * (worst.num_seeds > 1)}"
        text = (
            f"**{one.what}** ({one.title}, {seeds}), worst case: "
            f"**{_VERDICTS[worst.sign]}**, {worst} points."
        )
        for sign, word in ((1, "More"), (-1, "Less")):
            names = [
                f"{display_name(attack)} ({of.points:+.2f})"
                for attack, of in differences.items()
                if attack != WORST_CASE and of and of.sign == sign
            ]
            if names:
                text += f" {word} accuracy: {', '.join(names)}."
        yield one, text


def _rows(group: Group) -> list[str]:
    """The files and the commands of every row, and where it was computed."""
    parts = []
    for label, row in group.rows.items():
        for one in row:
            record = one.record
            trained = sorted({f"{s['device']}, {s['commit']}" for s in record["training"]})
            evaluation = record["evaluation"]
            name = file_name(record)
            lines = [
                f"**{label}, seed {record['seed']}**: [{name}](rows/{name}). "
                f"Trained on {'; '.join(trained) or 'a device that was not noted'}; evaluated on "
                f"{', '.join(evaluation['device'])}, {', '.join(evaluation['commit'])}.",
                "\n".join(["```", record["train"], *record["evaluate"], "```"]),
            ]
            parts += [lines[0], *(f"- {note}" for note in record["notes"]), lines[1]]
    return parts
