"""Names of attacks: what results are called on disk, what tables call them, and their order."""

import re
from collections.abc import Sequence
from typing import NamedTuple

NATURAL, AUTOATTACK, ADAPTIVE = "natural", "autoattack", "adaptive"
DIAGNOSTICS, FEATURES = "diagnostics", "features"
NO_ATTACKS = (DIAGNOSTICS, FEATURES)
"""Results that say nothing of each example's prediction."""
HEADS = "_with_p"
"""Ends the name of a result whose attack ascended the auxiliary heads too."""
FINAL, WITH_HEADS = "without_p", "with_p"
SCENARIOS = (FINAL, WITH_HEADS)
"""The paper's two scenarios: attacks on the final logits alone, and on the auxiliary heads too."""
PAPER_ORDER = ("Nat", "PGD", "FGSM", "C&W", "AA")
STRENGTH_ORDER = ("Nat", "FGSM", "PGD", "C&W", "AA")
# What the parentheses match is the number of steps, or the version of AutoAttack.
_FAMILIES = {
    r"natural()": "Nat",
    r"pgd(\d*)": "PGD",
    r"fgsm()": "FGSM",
    r"cw(\d*)": "C&W",
    r"autoattack(?:_(\w+))?": "AA",
    r"adaptive()": "Adaptive",
}


class AttackName(NamedTuple):
    """The parts of a result's name."""

    family: str  # 'PGD', 'AA', ...; the whole name where the family is not known
    variant: str  # the number of steps, or a version of AutoAttack other than the standard one
    heads: bool  # whether the auxiliary heads were attacked too

    @property
    def steps(self) -> int:
        """The number of steps; 0 where the name has none."""
        return int(self.variant) if self.variant.isdigit() else 0


def parse(attack: str) -> AttackName:
    """Return the parts of a result's name, for instance of ``'pgd40_with_p'``."""
    name = attack.removesuffix(HEADS)
    for pattern, family in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            return AttackName(family, match.group(1) or "", name != attack)
    return AttackName(name, "", name != attack)


def display_name(attack: str) -> str:
    """Return what tables call an attack: ``'PGD-40 (heads)'`` for ``'pgd40_with_p'``."""
    family, variant, heads = parse(attack)
    return f"{family}{'-' if variant else ''}{variant}{' (heads)' if heads else ''}"


def in_scenario(attack: str, scenario: str) -> bool:
    """Return whether an attack belongs to a scenario; natural images belong to none.

    AutoAttack and the adaptive attacks belong to both. AutoAttack sees the final logits alone, but
    the paper counts it in both.
    """
    family, _, heads = parse(attack)
    if attack == NATURAL:
        return False
    return family in ("AA", "Adaptive") or heads == (scenario == WITH_HEADS)


def attack_order(attack: str, families: Sequence[str] = PAPER_ORDER) -> tuple:
    """Return a sorting key: natural, final logits, auxiliary heads, adaptive attacks.

    Within these, attacks are in the given order of families, then by steps and by name.
    """
    family, _, heads = parse(attack)
    rank = families.index(family) if family in families else len(families)
    return attack == ADAPTIVE, heads, rank, parse(attack).steps, attack
