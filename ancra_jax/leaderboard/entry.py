"""What RobustBench's leaderboards say of a model: a file ``model_info/.../NAME.json`` each."""

import math
from typing import Any

from ancra_jax.errors import UsageError

TEST_IMAGES = {"imagenet": 5_000}  # that its accuracies are over; 10,000 of any other data set
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # as AutoAttack and RobustBench call them
_KEYS = (
    *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset"),
    *("threat_model", "venue", "architecture", "eps", "clean_acc", "reported", "autoattack_acc"),
    *("footnote", "unreliable"),
)
_UNKNOWN = dict.fromkeys(_KEYS) | {"number_forward_passes": 1, "unreliable": False}


def entry(**known: Any) -> dict[str, Any]:
    """Return an entry, null where nothing is known; under corruptions it has their accuracy.

    Raises:
      UsageError: an entry has no such key.
    """
    empty = _UNKNOWN
    if known.get("threat_model") == "corruptions":
        renamed = {"autoattack_acc": "corruptions_acc"}
        empty = {renamed.get(key, key): value for key, value in _UNKNOWN.items()}
    if unknown := sorted(set(known) - set(empty)):
        raise UsageError(f"info has {', '.join(unknown)}: allowed are {', '.join(empty)}")
    return empty | known


def percent(accuracy: float) -> str:
    """Return an accuracy as RobustBench writes it, ``'52.48'``."""
    return f"{100 * accuracy:.2f}"


def fraction(epsilon: float) -> str:
    """Return an epsilon as RobustBench writes it, ``'8/255'`` or ``'0.5'``."""
    levels = epsilon * 255
    whole = epsilon < 1 and math.isclose(levels, round(levels))
    return f"{round(levels)}/255" if whole else f"{epsilon:g}"


def footnote_on_data(dataset: str, examples: int | None, title: str) -> str:
    """Return what an entry must say of its test images; nothing if they are RobustBench's.

    A title such as 'CIFAR-10 (JPEG)' says that the images are not quite those of others.
    """
    usual = examples == TEST_IMAGES.get(dataset, 10_000) and not title.endswith(")")
    return "" if usual else f"Accuracies on {examples} test images of {title}."
