"""Which of the paper's claims stand in a group of rows: the signs of its differences."""

import re
from collections.abc import Iterator

from ancra_jax.paper.claims import TABLES
from ancra_jax.report.markdown import MISSING, Table
from ancra_jax.results.names import FAMILIES, NATURAL, attack_order, display_name
from tools.publish.comparison import COMPARISONS, Difference, difference, row_difference
from tools.publish.groups import WORST_CASE, Group, method_title

Claim = tuple[str, float | None, Difference]
_TABLES = ("table1", "table3")
_VERDICTS = {1: "stands", 0: "is not shown", -1: "**is contradicted**"}


def paper_claims() -> dict[str, dict[str, float]]:
    """What the paper prints for CIFAR-10 with a ResNet-18, in %, by method and column."""
    claims: dict[str, dict[str, float]] = {}
    for table in map(TABLES.__getitem__, _TABLES):
        for row in table.rows:
            if row.data == "cifar10" and row.claims.get("best"):
                values = zip(table.columns, row.claims["best"], strict=True)
                claims.setdefault(row.method, {}).update(
                    {column: value for column, value in values if value is not None}
                )
    return claims


def claims_table(group: Group) -> str:
    """Every claimed difference beside the one found; empty where there is none.

    A claim stands where the difference found has its sign, and an interval that excludes 0.
    """
    lines = [
        [what, "" if claim is None else f"{claim:+.2f}", str(found), _verdict(claim, found)]
        for what, claim, found in (*_between_methods(group), *_above_natural(group))
    ]
    headers = ["Claim", "The paper", "Here", "At this scale it"]
    return Table("", headers, lines, numeric=0).markdown() if lines else ""


def _between_methods(group: Group) -> Iterator[Claim]:
    """What a method has more than another; of the worst case, too, which the paper has not."""
    claims = paper_claims()
    for one in COMPARISONS:
        if one.method not in claims or one.baseline not in claims:
            continue
        method, baseline = claims[one.method], claims[one.baseline]
        for attack in (*_attacks(group), WORST_CASE):
            column = _column(attack)
            known = column in method and column in baseline
            found = difference(group, one, attack) if known or attack == WORST_CASE else None
            if found:
                claim = method[column] - baseline[column] if known else None
                yield f"{one.title}: {display_name(attack)}", claim, found


def _above_natural(group: Group) -> Iterator[Claim]:
    """Where the paper has more accuracy under an attack than without one."""
    for method, values in paper_claims().items():
        for attack in _attacks(group):
            claim = values.get(_column(attack), 0.0) - values[NATURAL]
            found = row_difference(group, method, attack, NATURAL) if claim > 0 else None
            if found:
                yield f"{method_title(method)}: {display_name(attack)} − Nat", claim, found


def _attacks(group: Group) -> list[str]:
    return sorted(group.attacks, key=lambda name: attack_order(name, FAMILIES))


def _column(attack: str) -> str:
    """How the paper's tables name an attack: without its number of steps."""
    return re.sub(r"\d", "", attack)


def _verdict(claim: float | None, found: Difference) -> str:
    if claim is None:
        return MISSING
    return _VERDICTS[found.sign if claim > 0 else -found.sign]
