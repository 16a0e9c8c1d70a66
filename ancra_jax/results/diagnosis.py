"""The diagnostics of a checkpoint, as they are kept on disk."""

import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ancra_jax.attacks.diagnostics.checks import Row as Check
from ancra_jax.errors import UsageError
from ancra_jax.results.store import read_result
from ancra_jax.run.files import read_arrays

NAME = "diagnostics"


@dataclass(frozen=True)
class StoredDiagnosis:
    """The diagnostics of one checkpoint."""

    step: int  # of the checkpoint
    data_fingerprint: str
    num_examples: int  # the first ones of the test split
    verdict: str  # 'trustworthy', 'suspicious' or 'masked'
    checks: tuple[Check, ...]  # all of them, those that were not run included
    compared_with: tuple[str, ...]  # the results of attacks that were there already
    epsilons: tuple[float, ...]  # radii under Linf, on the [0, 1] pixel scale
    accuracies: tuple[float, ...]  # that are left at these radii, as fractions
    offsets: Float[np.ndarray, "points"]  # of the loss landscape, on the pixel scale
    # Cross-entropy along the gradient's sign and along random signs, around a few images.
    losses: Float[np.ndarray, "shown points points"]

    @property
    def fired(self) -> tuple[Check, ...]:
        """The checks that fired."""
        return tuple(check for check in self.checks if check.fired)


def load_diagnosis(directory: pathlib.Path) -> StoredDiagnosis | None:
    """Read the diagnostics in an evaluation's directory; None if there are none.

    Raises:
      UsageError: the files are not what the diagnostics write.
    """
    path = directory / f"{NAME}.json"
    if not path.exists():
        return None
    record = read_result(path)
    arrays = read_arrays(path.with_suffix(".npz"), ["landscape_offsets", "landscape_losses"])
    try:
        return _diagnosis(record, arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: is not what the diagnostics write: {error!r}") from error


def _diagnosis(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> StoredDiagnosis:
    curve = record["epsilon_curve"]
    points = list(zip(curve["epsilons"], curve["accuracy"], strict=True))
    return StoredDiagnosis(
        **{key: record[key] for key in ("step", "data_fingerprint", "num_examples", "verdict")},
        checks=tuple(Check(**check) for check in record["rows"]),
        compared_with=tuple(record.get("compared_with", ())),
        epsilons=tuple(float(epsilon) for epsilon, _ in points),
        accuracies=tuple(float(accuracy) for _, accuracy in points),
        offsets=arrays["landscape_offsets"],
        losses=arrays["landscape_losses"],
    )
