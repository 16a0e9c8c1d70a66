"""Names of attacks: what results are called on disk, what tables call them, and their order."""

import re
from collections.abc import Sequence
from typing import NamedTuple

NATURAL, AUTOATTACK, ADAPTIVE = "natural", "autoattack", "adaptive"
APGD = {"apgd_ce": "apgd-ce", "apgd_t": "apgd-t"}
"""Two of AutoAttack's attacks that are results of their own, by these; their names in it."""
DIAGNOSTICS, FEATURES = "diagnostics", "features"
NO_ATTACKS = (DIAGNOSTICS, FEATURES)
"""Results that say nothing of each example's prediction."""
HEADS = "_with_p"
"""Ends the name of a result whose attack ascended the auxiliary heads too."""
RELEASED = "_released"
"""Ends the name of a result whose attack is that of the authors' code, not of their paper."""
FINAL, WITH_HEADS = "without_p", "with_p"
SCENARIOS = (FINAL, WITH_HEADS)
"""The paper's two scenarios: attacks on the final logits only, and on the auxiliary heads too."""
PAPER_ORDER = ("Nat", "PGD", "FGSM", "C&W", "APGD-CE", "APGD-T", "AA")
STRENGTH_ORDER = ("Nat", "FGSM", "PGD", "C&W", "APGD-CE", "APGD-T", "AA")
# What the parentheses match is the number of steps, or the version of AutoAttack.
_FAMILIES = {
    r"natural()": "Nat",
    r"pgd(\d*)": "PGD",
    r"fgsm()": "FGSM",
    r"cw(\d*)": "C&W",
    r"apgd_ce()": "APGD-CE",
    r"apgd_t()": "APGD-T",
    r"autoattack(?:_(\w+))?": "AA",
    r"adaptive()": "Adaptive",
}


class AttackName(NamedTuple):
    """The parts of a result's name."""

    family: str  # 'PGD', 'AA', ...; the whole name where the family is not known
    variant: str  # the number of steps, or a version of AutoAttack other than the standard one
    heads: bool  # whether the auxiliary heads were attacked too
    released: bool = False  # whether the attack is that of the authors' code

    @property
    def steps(self) -> int:
        """The number of steps; 0 where the name has none."""
        return int(self.variant) if self.variant.isdigit() else 0


def parse(attack: str) -> AttackName:
    """Return the parts of a result's name, for instance of ``'pgd40_with_p'``."""
    of_final = attack.removesuffix(HEADS)
    name = of_final.removesuffix(RELEASED)
    ends = of_final != attack, name != of_final
    for pattern, family in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            return AttackName(family, match.group(1) or "", *ends)
    return AttackName(name, "", *ends)


def display_name(attack: str) -> str:
    """Return what tables call an attack: ``'PGD-40 (heads)'`` for ``'pgd40_with_p'``."""
    family, variant, heads, released = parse(attack)
    ends = f"{' (released)' if released else ''}{' (heads)' if heads else ''}"
    return f"{family}{'-' if variant else ''}{variant}{ends}"


def in_scenario(attack: str, scenario: str) -> bool:
    """Return whether an attack belongs to a scenario; natural images belong to none.

    AutoAttack and the adaptive attacks belong to both. AutoAttack sees the final logits alone, but
    the paper counts it in both.
    """
    family, _, heads, _ = parse(attack)
    if attack == NATURAL:
        return False
    return family in ("AA", "Adaptive") or heads == (scenario == WITH_HEADS)


def attack_order(attack: str, families: Sequence[str] = PAPER_ORDER) -> tuple:
    """Return a sorting key: natural, final logits, auxiliary heads, adaptive attacks.

    Within these, attacks are in the given order of families, then by steps and by name.
    """
    name = parse(attack)
    rank = families.index(name.family) if name.family in families else len(families)
    return attack == ADAPTIVE, name.heads, rank, name.steps, attack
