"""What is left of a checkpoint's accuracy as the attacker grows."""

from typing import Any

from ancra_jax.report_data import Evaluation
from ancra_jax.report_names import (
    ADAPTIVE,
    AUTOATTACK,
    NATURAL,
    WITH_P,
    display_name,
    scenario_of,
)

RUNGS = ("Nat", "FGSM", "PGD", "AutoAttack", "With p", "Adaptive")
"""With p: the examples that no attack with p breaks. Worst case: those that nothing breaks."""


def common_accuracy(evaluation: Evaluation) -> dict[str, float]:
    """The accuracy under each attack on the first examples, as many as all of them saw.

    On these the worst case is never above a single attack.
    """
    count = evaluation.num_examples
    return {name: float(one.correct[:count].mean()) for name, one in evaluation.results.items()}


def rungs_of(evaluation: Evaluation) -> dict[str, float]:
    """The accuracy on every rung that was climbed, as a fraction; see ``common_accuracy``."""
    accuracy = common_accuracy(evaluation)
    pgd = sorted((name for name in accuracy if display_name(name).startswith("PGD")), key=len)
    pgd = [name for name in pgd if scenario_of(name) == "without_p"]
    rungs = {
        "Nat": accuracy.get(NATURAL),
        "FGSM": accuracy.get("fgsm"),
        "PGD": accuracy[pgd[-1]] if pgd else None,
        "AutoAttack": accuracy.get(AUTOATTACK),
        "With p": evaluation.accuracy_under_all(
            [name for name in accuracy if name.endswith(WITH_P)]
        ),
        "Adaptive": accuracy.get(ADAPTIVE),
    }
    return {name: value for name, value in rungs.items() if value is not None}


def adaptive_attacks(evaluation: Evaluation) -> tuple[dict[str, Any], ...]:
    """What each attack of the adaptive suite did, as its result file says."""
    if ADAPTIVE not in evaluation.results:
        return ()
    return tuple(evaluation.results[ADAPTIVE].record.get("attacks", ()))


def gate_of(evaluation: Evaluation) -> dict[str, float]:
    """How the part without a gradient behaves, as the adaptive attacks' result file says."""
    if ADAPTIVE not in evaluation.results:
        return {}
    gate = evaluation.results[ADAPTIVE].record.get("gate") or {}
    return {name: value for name, value in gate.items() if value is not None}
