"""AutoAttack, the adaptive attacks and the diagnostics as parts of an evaluation."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ancra_jax.attacks import AutoAttackResult, Defence, adaptive
from ancra_jax.attacks.adaptive import Level
from ancra_jax.attacks.autoattack.api import autoattack
from ancra_jax.attacks.diagnostics.api import PARTS, TRANSFER, WHITE_BOX, Flags, diagnose
from ancra_jax.attacks.job import CLEAN, Placement, Progress
from ancra_jax.config.schema import Config
from ancra_jax.evaluate.examples import Keeper
from ancra_jax.evaluate.spec import Arrays, Model, Spec, Task
from ancra_jax.results.load import load_results, same_target
from ancra_jax.results.names import ADAPTIVE, NATURAL, parse


def run_autoattack(task: Task) -> tuple[Arrays, dict[str, Any]]:
    """Attack the final logits with AutoAttack: the version, or the attacks, of the settings."""
    version, chosen = task.settings["version"], task.settings.get("attacks_to_run")
    precision = task.search_precision
    options = dict(version=version, attacks_to_run=chosen, search_precision=precision)
    result = autoattack(**task.options, **options)
    more: dict[str, Any] = {"accuracy_after": result.accuracies, "warnings": result.warnings}
    more["denied"] = result.denied
    if chosen:
        more["attack_seconds"] = result.seconds
    return _arrays(task, result), more


class Source(NamedTuple):
    """Another network, whose adversarial images are tried."""

    name: str  # base name of its work directory, or of its file
    identity: dict[str, Any]  # what tells its weights from others, as JSON
    model: Model


def adaptive_spec(
    config: Config,
    budget: Level,
    max_minutes: float,
    defences: Sequence[Defence],
    sources: Sequence[Source],
) -> Spec:
    """Return the attacks that a network's defences declare, and transfer from other networks.

    Stopped by ``max_minutes`` (0: no limit), the result says ``"complete": false``, and the attacks
    continue after the last finished batch. The limit decides no number of a complete result.
    """
    settings = {
        "norm": config.evaluation.norm,
        "epsilon": config.evaluation.epsilon,
        "budget": budget,
        "defences": [defence.name for defence in defences],
        "transfer_from": [{"name": source.name} | source.identity for source in sources],
    }

    def run(task: Task) -> tuple[Arrays, dict[str, Any]]:
        result = adaptive(
            **task.options,
            defences=defences,
            transfer_from={source.name: source.model for source in sources},
            budget=budget,
            search_precision=task.search_precision,
            max_seconds=60 * max_minutes or None,
        )
        masks = None  # what a defence says of its part that passes no gradient
        broken = ~result.robust & (result.broken_by != "clean")
        placement = Placement.over(jax.devices(), task.target.batch_size, len(broken))
        for defence in defences if result.complete else ():
            if statistics := defence.statistics:
                masks = statistics(task.images, result.images, task.labels, broken, placement)
        warnings = result.warnings
        if not any(defence.attacks for defence in defences):
            by = "Square and transfer" if sources else "Square"
            warning = (
                f"the network declares no surrogate: it was attacked by {by}; AutoAttack is the "
                "measure of a network that hides no gradient"
            )
            warnings = [warning, *warnings]
        more = {
            "complete": result.complete,
            "attacks": [record._asdict() for record in result.records],
            "accuracy_after": result.accuracies,
            "denied": result.denied,
            "gate": masks,
            "warnings": warnings,
        }
        return _arrays(task, result), more

    return Spec(ADAPTIVE, settings, run)


def _arrays(task: Task, result: AutoAttackResult) -> Arrays:
    """Return what is kept of every example under a sequence of attacks."""
    keeper = Keeper(task, {})
    keeper.standing &= result.broken_by != CLEAN
    keeper.offer(0, result.robust, lambda: result.images)
    keeper.write(result.broken_by.astype(str))
    return {
        "labels": task.labels,
        "correct": result.robust,
        "broken_by": result.broken_by.astype(str),
        "target": result.target,
        "norms": result.norms,
        "queries": result.queries,
    }


def run_diagnostics(task: Task) -> tuple[Arrays, dict[str, Any]]:
    """Diagnose the network; attacks whose results are there already are compared with each other.

    Interrupted, it continues after the last finished measurement.
    """

    def show(progress: Progress) -> None:
        text = f"{progress.attack}, robust accuracy {progress.robust_accuracy:.2%}"
        task.bar.update(progress.round, text, total=progress.rounds)

    results = task.target.share.from_first(partial(_earlier_results, task))
    found = diagnose(
        **task.options | {"batch_size": task.target.batch_size, "progress": show},
        results=results,
        num_steps=task.settings["num_steps"],
    )
    arrays = {
        "landscape_offsets": found.landscape_offsets,
        "landscape_losses": found.landscape_losses,
        "curve_correct": found.correct_at,
    }
    return arrays, {
        "verdict": found.verdict,
        "clean_accuracy": found.clean_accuracy,
        "rows": [asdict(row) for row in found.checks],
        "epsilon_curve": {
            "attack": "APGD on the cross-entropy, Linf, 20 steps",
            "epsilons": found.epsilons.tolist(),
            "accuracy": found.accuracies.tolist(),
        },
        "compared_with": sorted(results.keys() - set(PARTS)),
    }


def _earlier_results(task: Task) -> dict[str, Flags]:
    """Return which examples stayed correct under attacks that saw the same ones before.

    This is what ``attacks.diagnose`` takes as ``results``.
    """
    count = len(task.labels)
    results: dict[str, Flags] = {}
    for name, (record, arrays) in sorted(load_results(task.partial.parent).items()):
        if len(arrays["correct"]) < count or not same_target(record, task.identity):
            continue
        correct = arrays["correct"][:count]
        results[name] = correct
        broken_by = arrays.get("broken_by", np.full(count, ""))[:count]
        # What followed the gradient of the network's own output, and what did not.
        parts = {}
        if parse(name).heads:
            parts = {TRANSFER: correct}
        elif name == ADAPTIVE:
            # Warm starts follow the output's own gradient unless a defence says otherwise.
            parts = {TRANSFER: correct | np.char.startswith(broken_by, "warm-")}
        elif name != NATURAL:
            by_square = broken_by == "square"
            parts = {WHITE_BOX: correct | by_square, TRANSFER: ~by_square}
        for part, flags in parts.items():
            results[part] = results.get(part, True) & flags
    return results
