"""Which rows can be compared, and what one method has more than another, beside the paper's claim.

Rows are paired by seed: the same seed holds out the same images and visits them in one order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from ancra_jax.paper.claims import CLAIMS, method_title
from ancra_jax.paper.measured import column_of
from ancra_jax.results.load import labels_of
from ancra_jax.results.names import ADAPTIVE, HEADS, NATURAL, attack_order, display_name
from ancra_jax.results.rows import Row, SeedsRow, epsilon_text, group_seeds, seeds_row
from ancra_jax.results.statistics import Difference, difference, survivors
from tools.publish.record import Published

WORST_CASE = "worst case"
ORDER = (
    *("natural", "pgd_at", "trades", "trades_awp", "trades_anc", "trades_ra", "trades_ancra"),
    "pgd_at_ancra",
)
# What is added (ANC, RA or both), the method with it, and the one without it.
COMPARISONS = (
    ("ANC", "trades_anc", "trades"),
    ("ANC", "trades_ancra", "trades_ra"),
    ("RA", "trades_ra", "trades"),
    ("RA", "trades_ancra", "trades_anc"),
    ("ANCRA", "trades_ancra", "trades"),
    ("ANCRA", "pgd_at_ancra", "pgd_at"),
)


@dataclass(frozen=True)
class Group:
    """Rows of one data set, network, setting and threat model."""

    title: str  # what they share; begins with what sets them apart from the paper
    published: list[Published]  # ordered by method and seed
    methods: list[Row | SeedsRow]  # one for each method; several seeds together

    def seeds_of(self, method: str) -> dict[int, Row]:
        """Return the rows of a method by seed; none where it is there in several variants."""
        found = [one for one in self.methods if _rows(one)[0].config.name == method]
        return {row.seed: row for row in _rows(found[0])} if len(found) == 1 else {}


@dataclass(frozen=True)
class Compared:
    """A difference that was measured, and the paper's."""

    what: str  # what is added, 'ANC'; '' where two attacks on one method are compared
    title: str  # the difference that is taken, 'TRADES-ANC − TRADES'
    attack: str  # a name, or ``WORST_CASE``; with '' of ``what``, which two are compared
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
    claims = {method: claim for (data, method), claim in CLAIMS.items() if data == "cifar10"}
    names = {name for one in group.published for name in one.row.accuracy}
    attacks = sorted(names, key=attack_order)
    found = []
    for what, method, baseline in COMPARISONS:
        rows, others = group.seeds_of(method), group.seeds_of(baseline)
        pairs = [(rows[seed], others[seed]) for seed in sorted(rows.keys() & others.keys())]
        title = f"{method_title(method)} − {method_title(baseline)}"
        for attack in (*attacks, WORST_CASE):
            has, lacks = (claims.get(one, {}).get(column_of(attack)) for one in (method, baseline))
            claim = None if has is None or lacks is None else has - lacks
            if one := _difference(pairs, attack, attack):
                found.append(Compared(what, title, attack, claim, one))
    for method, claimed in claims.items():
        pairs = [(row, row) for row in group.seeds_of(method).values()]
        for attack in attacks:
            claim = (claimed.get(column_of(attack)) or 0.0) - (claimed[NATURAL] or 0.0)
            if claim > 0 and (one := _difference(pairs, attack, NATURAL)):
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
    seeds = group_seeds(one.row for one in titled)
    methods = [seeds_row(rows) if len(rows) > 1 else rows[0] for rows in seeds]
    return Group(title, titled, methods)


def _titled(one: Published, label: str) -> Published:
    """Return a published row with its method's title, and without what cannot be compared.

    Of a network that declares no defence, a short Square is all that the adaptive attacks are.
    """
    accuracy = dict(one.row.accuracy)
    adaptive = one.row.evaluation.records.get(ADAPTIVE)
    if adaptive and not adaptive["settings"].get("defences"):
        del accuracy[ADAPTIVE]
    name = one.row.config.name
    label = label.replace(name, method_title(name), 1)
    return replace(one, row=replace(one.row, label=label, accuracy=accuracy))


def _order(row: Row) -> tuple:
    name = row.config.name
    return ORDER.index(name) if name in ORDER else len(ORDER), name, row.label, row.seed


def _rows(row: Row | SeedsRow) -> Sequence[Row]:
    return [row] if isinstance(row, Row) else row.rows


def _difference(pairs: Sequence[tuple[Row, Row]], attack: str, other: str) -> Difference | None:
    """Return the difference between accuracies; None where an attack is missing."""
    correct = [(_correct(row, attack), _correct(baseline, other)) for row, baseline in pairs]
    found = [(one, two) for one, two in correct if one is not None and two is not None]
    return difference(found) if found and len(found) == len(pairs) else None


def _correct(row: Row, attack: str) -> Bool[np.ndarray, "examples"] | None:
    """Return which of a row's examples are right under an attack, or in the worst case.

    Of a network without auxiliary heads, the attack on its final logits stands for one on them.
    """
    correct = row.evaluation.correct
    if attack == WORST_CASE:
        return survivors(correct)
    if not row.reverse_attention:
        attack = attack.removesuffix(HEADS)
    if attack not in row.accuracy:
        return None
    return correct[attack][: row.examples[0]]
