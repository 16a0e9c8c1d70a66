"""The commands that compute results again."""

from collections.abc import Mapping
from typing import Any

from ancra_jax.results.names import ADAPTIVE, AUTOATTACK, NATURAL, parse


def evaluate_command(workdir: str, checkpoint: str = "best") -> str:
    """Return the command that evaluates a checkpoint, which an ``evaluation_name`` names."""
    name, _, weights = checkpoint.partition("_")
    flags = "" if name == "best" else f" --checkpoint={name}"
    flags += f" --weights={weights}" if weights else ""
    return f"python -m ancra_jax.evaluate --workdir={workdir}{flags}"


def evaluate_commands(
    workdir: str, checkpoint: str, records: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the commands that compute results: one a suite, number of examples and seed.

    ``records`` are the results' JSON files by attack; without any, the command is that of the
    paper's suite. Of a run that was transferred from they know the directory's base name alone.
    """
    how = {name: (record["num_examples"], record["seed"]) for name, record in records.items()}
    commands: dict[str, None] = {}
    for name, (num_examples, seed) in how.items():
        family, version, _ = parse(name)
        suite = ""  # the paper's, which ends with AutoAttack
        if name == ADAPTIVE:
            suite = f" --suite=adaptive{_adaptive_flags(records[name]['settings'])}"
        elif name == AUTOATTACK and how.get(NATURAL) != how[name]:
            suite = " --suite=autoattack"
        elif family == "AA" and version:
            suite = f" --suite=autoattack --autoattack_version={version}"
        command = evaluate_command(workdir, checkpoint)
        commands[f"{command}{suite} --num_examples={num_examples} --seed={seed}"] = None
    return tuple(commands) or (evaluate_command(workdir, checkpoint),)


def _adaptive_flags(settings: Mapping[str, Any]) -> str:
    """Return the flags for what was not left at its default."""
    budget = settings.get("budget", "standard")
    sources = ",".join(source["name"] for source in settings.get("transfer_from", ()))
    flags = f" --adaptive_budget={budget}" if budget != "standard" else ""
    return f"{flags} --transfer_from={sources}" if sources else flags
