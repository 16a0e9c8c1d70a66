"""How a report names and orders attacks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NATURAL = "natural"
AUTOATTACK = "autoattack"
ADAPTIVE = "adaptive"
WITH_P = "_with_p"
# By the name of a result; what the parentheses match is the number of steps, or a variant.
_FAMILIES = {
    r"natural": "Nat",
    r"pgd(\d*)": "PGD",
    r"fgsm": "FGSM",
    r"cw(\d*)": "C&W",
    r"autoattack(?:_(\w+))?": "AA",
    r"adaptive": "Adaptive",
}


def scenario_of(attack: str) -> str:
    """``'with_p'`` where the auxiliary heads were attacked too, ``'without_p'`` elsewhere."""
    return "with_p" if attack.endswith(WITH_P) else "without_p"


def is_autoattack(attack: str) -> bool:
    """Whether it is AutoAttack: on the final logits, but the paper counts it with p as well."""
    return attack == AUTOATTACK or attack.startswith(f"{AUTOATTACK}_")


def in_both_tables(attack: str) -> bool:
    """Whether an attack is neither with p nor without: AutoAttack, and the adaptive attacks."""
    return is_autoattack(attack) or attack == ADAPTIVE


def attacks_of(scenario: str, attacks: Iterable[str], families: Sequence[str]) -> list[str]:
    """The columns of a scenario's table, in order: natural images apart."""
    names = [
        name
        for name in attacks
        if name != NATURAL and (scenario_of(name) == scenario or in_both_tables(name))
    ]
    return sorted(names, key=lambda name: attack_order(name, families)[2:])


def display_name(attack: str) -> str:
    """``'PGD-40 (p)'`` for ``'pgd40_with_p'``; a name of no known family stays as it is."""
    name = attack.removesuffix(WITH_P)
    for pattern, family in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            name = "-".join(part for part in (family, *match.groups()) if part)
            break
    return f"{name} (p)" if attack.endswith(WITH_P) else name


def attack_order(attack: str, families: Sequence[str]) -> tuple:
    """A sorting key: without p, with p, adaptive; then by family in the order given, by steps and
    by name."""
    family, _, steps = display_name(attack.removesuffix(WITH_P)).partition("-")
    rank = families.index(family) if family in families else len(families)
    steps_taken = int(steps) if steps.isdigit() else 0
    return attack == ADAPTIVE, scenario_of(attack) == "with_p", rank, steps_taken, attack


def evaluate_command(workdir: str, checkpoint: str = "best") -> str:
    """The command that evaluates a checkpoint, ``'best_ema'`` with the weights named."""
    command = f"python -m ancra_jax.evaluate --workdir={workdir}"
    name, _, weights = checkpoint.partition("_")
    command += "" if name == "best" else f" --checkpoint={name}"
    return f"{command} --weights={weights}" if weights else command


def evaluate_commands(
    workdir: str, checkpoint: str, records: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """The commands that compute results: one for each suite, number of examples and seed.

    Args:
      workdir: of the run.
      checkpoint: ``'best'``, ``'last'``, or of an average (``'best_ema'``).
      records: the results' JSON files by attack. Of a run that was transferred from they know the
        directory's base name alone.
    """
    how = {name: (record["num_examples"], record["seed"]) for name, record in records.items()}
    commands: dict[str, None] = {}
    for name, (num_examples, seed) in how.items():
        suite = ""  # the paper's, which ends with AutoAttack
        if name == ADAPTIVE:
            suite = f" --suite=adaptive{_adaptive_flags(records[name]['settings'])}"
        if name == AUTOATTACK and how.get(NATURAL) != how[name]:
            suite = " --suite=autoattack"
        elif name != AUTOATTACK and is_autoattack(name):
            version = name.removeprefix(f"{AUTOATTACK}_")
            suite = f" --suite=autoattack --autoattack_version={version}"
        command = evaluate_command(workdir, checkpoint)
        commands[f"{command}{suite} --num_examples={num_examples} --seed={seed}"] = None
    return tuple(commands)


def _adaptive_flags(settings: Mapping[str, Any]) -> str:
    """What of the adaptive attacks was not left at its default."""
    budget = settings.get("budget", "standard")
    sources = ",".join(source["name"] for source in settings.get("transfer_from", ()))
    flags = f" --adaptive_budget={budget}" if budget != "standard" else ""
    return f"{flags} --transfer_from={sources}" if sources else flags


# The order of the paper's tables.
FAMILIES = ("Nat", "PGD", "FGSM", "C&W", "AA")
