"""What README.md and results/README.md say, computed from ``results/`` and nothing else.

Rows that can be compared stand in one group, with what one method has more than another and the
paper's claim beside it. They are paired by seed: the same seed holds out the same images and visits
them in one order.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ancra_jax.paper.claims import CLAIMS, STUDIED, method_title
from ancra_jax.paper.measured import column_of
from ancra_jax.results.load import labels_of
from ancra_jax.results.names import ADAPTIVE, NATURAL, attack_order, display_name
from ancra_jax.results.rows import (
    WORST,
    Row,
    SeedsRow,
    epsilon_text,
    group_seeds,
    paired_difference,
    seeds_row,
    seeds_text,
)
from ancra_jax.results.statistics import LEAST_SEEDS, RESAMPLES, Difference
from ancra_jax.results.tables import (
    Column,
    Markup,
    TextColumn,
    all_attacks,
    build,
    compared,
    points,
)
from tools.publish.record import Published, file_name

ORDER = ("natural", "pgd_at", "trades", "trades_anc", "trades_ra", "trades_ancra", "pgd_at_ancra")
STUDY = tuple(method for method in STUDIED if method not in ORDER)
"""Controls and variants: their worst case and natural accuracy are set beside `CONTROLS`."""
CONTROLS = ("trades", "trades_shallow")
NO_LAST_BLOCK = "Leaving out the last block"
# What is added (ANC, RA or both), the method with it, and the one without it.
COMPARISONS = (
    ("ANC", "trades_anc", "trades"),
    ("ANC", "trades_ancra", "trades_ra"),
    ("RA", "trades_ra", "trades"),
    ("RA", "trades_ancra", "trades_anc"),
    ("ANCRA", "trades_ancra", "trades"),
    ("ANCRA", "pgd_at_ancra", "pgd_at"),
    (NO_LAST_BLOCK, "trades_shallow", "trades"),
    (NO_LAST_BLOCK, "trades_shallow", "trades_ra"),
    (NO_LAST_BLOCK, "trades_shallow", "trades_ancra"),
)

NOTHING = "No row has been published yet."
_README_VARIANTS = ("trades_branches", "trades_soft_ra")
_README_METHODS = (*ORDER, "trades_shallow", *_README_VARIANTS)
_README_COMPARED = ("ANCRA", NO_LAST_BLOCK, *map(method_title, _README_VARIANTS))
_README_FAMILIES = ("Nat", "PGD", "AA", "Adaptive")
_HOW_TO_READ = (
    "Accuracy in % on test images, mean ± sample standard deviation over training seeds; of one "
    "seed the worst case has its 95 % Wilson interval. **Worst case**: right on the natural image "
    "and under every attack that the row was evaluated with, those that see through reverse "
    "attention included where they were run. (heads): the auxiliary heads are attacked too. "
    "Adaptive: the attacks made for a network's defence, where it has one."
)
_HOW_COMPARED = (
    "Differences in points of 100, with 95 % intervals: rows are paired by training seed and test "
    f"image, and seeds and images resampled independently, {RESAMPLES:,} times. This takes the "
    "seeds as draws from all seeds and the images as draws from all images; three seeds say little "
    "of the former, fewer show nothing here, and no interval speaks of another setting or of "
    "attacks that were not run. No correction is made for looking at many attacks. The worst cases "
    "of two rows are over the attacks that each was evaluated with: a network with reverse "
    "attention is also attacked in ways that another cannot be. Of a network without auxiliary "
    "heads, the attack on its final logits stands for one on them; adaptive attacks are compared "
    "only where both networks have a defence."
)
_HOW_CLAIMED = (
    "A claim of the paper stands here where the difference has the claimed sign and an interval "
    "without 0; that says nothing of its size, nor of the paper's setting where this is another. "
    "The paper has no worst case."
)
_HELPS = {1: "it helps", 0: "no difference is shown", -1: "it harms"}
_CLAIM = {1: "stands", 0: "is not shown", -1: "**is contradicted**"}

_LABEL = TextColumn("Method", lambda row: row.label, "always")
_SEEDS = TextColumn("Seeds", lambda row: seeds_text(row.seeds), "always")
_COMPARED = (
    TextColumn("Difference", lambda one: one.title),
    TextColumn("Attack", lambda one: display_name(one.attack)),
    Column("Here", lambda one: compared(one.found)),
    Column("The paper", lambda one: None if one.claim is None else f"{one.claim:+.2f}"),
    TextColumn("The paper's claim", lambda one: Markup(_verdict(one))),
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


@dataclass(frozen=True)
class Group:
    """Rows of one data set, network, setting and threat model."""

    title: str  # what they share; begins with what sets them apart from the paper
    published: list[Published]  # ordered by method and seed
    seeds: list[list[Row]]  # the same by method

    @property
    def data(self) -> str:
        """Name of the data set, as in a configuration."""
        return self.published[0].row.config.data.name

    @property
    def methods(self) -> list[Row | SeedsRow]:
        """One row for each method; several seeds together."""
        return [seeds_row(rows) if len(rows) > 1 else rows[0] for rows in self.seeds]

    def variants_of(self, method: str) -> list[dict[int, Row]]:
        """Return the rows of a method by seed, of each of its variants."""
        variants = (rows for rows in self.seeds if rows[0].config.name == method)
        return [{row.seed: row for row in rows} for rows in variants]

    def seeds_of(self, method: str) -> dict[int, Row]:
        """Return the rows of a method by seed; none where it is there in several variants."""
        variants = self.variants_of(method)
        return variants[0] if len(variants) == 1 else {}


@dataclass(frozen=True)
class Compared:
    """A difference that was measured, and the paper's."""

    what: str  # what is added, 'ANC'; '' where two attacks on one method are compared
    title: str  # the difference that is taken, 'TRADES-ANC − TRADES'
    attack: str  # a name, or ``WORST``; with '' of ``what``, which two are compared
    claim: float | None  # what the paper has, in points of 100
    found: Difference


def groups_of(published: Sequence[Published]) -> list[Group]:
    """Sort rows into groups; of the paper's setting first."""
    keyed: dict[tuple, list[Published]] = {}
    for one in published:
        key = (one.record["setting"], one.row.network, one.row.checkpoint, one.row.comparable)
        keyed.setdefault(key, []).append(one)
    return [_group(rows) for _, rows in sorted(keyed.items(), key=lambda item: item[0])]


def comparisons(group: Group) -> list[Compared]:
    """Return what each method has more than another, under every attack and in the worst case.

    Comparisons whose methods are not both there are left out, and attacks that were not run on
    both. At the end is where the paper has more accuracy under an attack than on natural images.
    """
    claims = {method: claim for (one, method), claim in CLAIMS.items() if one == group.data}
    names = {name for one in group.published for name in one.row.accuracy}
    attacks = sorted(names, key=attack_order)
    found = []
    wanted = [(*one, attacks) for one in COMPARISONS]
    for method, control in itertools.product(STUDY, CONTROLS):
        if method not in CONTROLS:
            wanted.append((method_title(method), method, control, [NATURAL]))
    for what, method, baseline, tried in wanted:
        others = group.seeds_of(baseline)
        for rows, attack in itertools.product(group.variants_of(method), (*tried, WORST)):
            has, lacks = (claims.get(one, {}).get(column_of(attack)) for one in (method, baseline))
            claim = None if has is None or lacks is None else has - lacks
            if one := paired_difference(rows, others, attack, attack):
                title = " − ".join(next(iter(one.values())).label for one in (rows, others))
                found.append(Compared(what, title, attack, claim, one))
    for method, claimed in claims.items():
        rows = group.seeds_of(method)
        for attack in attacks:
            claim = (claimed.get(column_of(attack)) or 0.0) - (claimed[NATURAL] or 0.0)
            if claim > 0 and (one := paired_difference(rows, rows, attack, NATURAL)):
                both = f"{display_name(attack)} − {display_name(NATURAL)}"
                found.append(Compared("", method_title(method), both, claim, one))
    return found


def _group(published: list[Published]) -> Group:
    labels = labels_of([one.row.config for one in published])
    titled = [_titled(one, label) for one, label in zip(published, labels, strict=True)]
    titled.sort(key=lambda one: _order(one.row))
    record, row = titled[0].record, titled[0].row
    title = (
        f"{row.data}, {row.network}, epsilon {row.norm} {epsilon_text(row.epsilon)}, "
        f"{row.checkpoint} checkpoint, {row.examples[0]:,} test examples."
    )
    if record["setting"]:
        title = f"**{record['setting'][0].upper()}{record['setting'][1:]}.** {title}"
    return Group(title, titled, group_seeds(one.row for one in titled))


def _titled(one: Published, label: str) -> Published:
    """Return a published row with its method's title, and without what cannot be compared.

    Of a network that declares no defence, the adaptive attacks are a short Square and transfer.
    """
    accuracy = dict(one.row.accuracy)
    adaptive = one.row.evaluation.records.get(ADAPTIVE)
    if adaptive and not adaptive["settings"].get("defences"):
        del accuracy[ADAPTIVE]
    name = one.row.config.name
    label = label.replace(name, method_title(name), 1)
    return replace(one, row=replace(one.row, label=label, accuracy=accuracy))


def _order(row: Row) -> tuple:
    name, order = row.config.name, (*ORDER, *STUDY)
    return order.index(name) if name in order else len(order), name, row.label, row.seed


def readme_section(groups: Sequence[Group]) -> str:
    """Return README.md's table of each data set, the digits last: the worst case in one setting.

    It is, of those with seeds enough for a difference, the setting with most test images, then
    most epochs. Of controls and variants the table has those that say most.
    """
    if not groups:
        return NOTHING
    parts = []
    shown = {one.data: one for one in sorted(groups, key=_size)}
    for group in sorted(shown.values(), key=lambda one: one.data == "digits"):
        methods = [
            row
            for row, seeds in zip(group.methods, group.seeds, strict=True)
            if seeds[0].config.name in _README_METHODS
        ]
        if methods:
            columns = [_LABEL, _SEEDS, *all_attacks(methods, _README_FAMILIES)]
            parts += [group.title, build("", columns, methods).markdown()]
            said = [one for one in comparisons(group) if one.what in _README_COMPARED]
            parts.append(_listed(one for one in said if one.attack == WORST))
    more = "All settings, attacks and intervals: [results/README.md](results/README.md)."
    return "\n\n".join([*filter(None, parts), f"{_HOW_TO_READ} {more}"])


def _size(group: Group) -> tuple[bool, int, int]:
    row = group.published[0].row
    return max(map(len, group.seeds)) >= LEAST_SEEDS, row.examples[0], row.config.epochs


def results_page(groups: Sequence[Group]) -> str:
    """Return results/README.md: all attacks, the comparisons, and the commands."""
    parts = [
        "# Results",
        "Written by `python -m tools.publish` from the JSON files beside it; see "
        "[docs/results.md](../docs/results.md).",
    ]
    mean = "Mean: over PGD, FGSM, C&W and AutoAttack, where all four were run."
    how = [f"{_HOW_TO_READ} {mean}", _HOW_COMPARED, _HOW_CLAIMED]
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
                _listed(found),
            ]
        parts += ["### Rows", *_rows(group.published)]
    return "\n\n".join(parts) + "\n"


def _verdict(one: Compared) -> str:
    return "" if one.claim is None else _CLAIM[one.found.sign if one.claim > 0 else -one.found.sign]


def _diagnosis(record: Mapping[str, Any]) -> str:
    return f"{record['verdict']} ({', '.join(record['fired']) or 'none'})" if record else ""


def _listed(found: Iterable[Compared]) -> str:
    return "\n".join(f"- {sentence}" for sentence in _sentences(found))


def _sentences(found: Iterable[Compared]) -> Iterator[str]:
    """Yield what the numbers of each comparison of methods say."""
    methods = (one for one in found if one.what)
    for (what, title), ones in itertools.groupby(methods, key=lambda one: (one.what, one.title)):
        *attacks, worst = ones
        seeds = f"{worst.found.num_seeds} seed{'s' * (worst.found.num_seeds > 1)}"
        text = (
            f"**{what}** ({title}, {seeds}), worst case: **{_HELPS[worst.found.sign]}**, "
            f"{points(worst.found)} points."
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


def _rows(published: Iterable[Published]) -> Iterator[str]:
    """Yield the files of each method's rows, where they were computed, and their commands."""
    for (label, commands), ones in itertools.groupby(published, key=_label_and_commands):
        rows = list(ones)
        files = [f"[{one.row.seed}](rows/{file_name(one.record)})" for one in rows]
        trained = {
            f"{start['device']}, {start['commit']}"
            for one in rows
            for start in one.record["training"]
        }
        evaluated = {
            ", ".join(one.record["evaluation"]["device"] + one.record["evaluation"]["commit"])
            for one in rows
        }
        yield (
            f"**{label}**, seed{'s' * (len(rows) > 1)} {', '.join(files)}. "
            f"Trained on {'; '.join(sorted(trained)) or 'a device that was not noted'}; evaluated "
            f"on {'; '.join(sorted(evaluated))}."
        )
        yield from dict.fromkeys(f"- {note}" for one in rows for note in one.record["notes"])
        yield "\n".join(["```", *commands, "```"])


def _label_and_commands(one: Published) -> tuple[str, tuple[str, ...]]:
    """Return what a method's rows share; commands have SEED where the training's seed stands."""
    seed = rf"(--config\.seed=|--workdir=\S*\D){one.row.seed}(?=\s|$)"
    commands = (one.record["train"], *one.row.evaluate)
    return one.row.label, tuple(re.sub(seed, r"\1SEED", command) for command in commands)
