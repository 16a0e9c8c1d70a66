"""What a report reads of the diagnostics of a checkpoint."""

import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ancra_jax.attacks.diagnostics.checks import Row
from ancra_jax.errors import UsageError
from ancra_jax.results.store import read_result
from ancra_jax.run.files import read_arrays

NAME = "diagnostics"
FILE = f"{NAME}.json"


@dataclass(frozen=True)
class ReportedDiagnosis:
    """The diagnostics of one checkpoint.

    Attributes:
      step: of the checkpoint.
      data_fingerprint: of the data set.
      num_examples: of the first test examples.
      verdict: ``'trustworthy'``, ``'suspicious'`` or ``'masked'``.
      checks: all of them, those that were not run included.
      epsilons: radii under Linf, on the [0, 1] pixel scale.
      accuracies: that are left there, as fractions.
      offsets: of the landscape, on the pixel scale.
      losses: cross-entropy along the gradient's sign and along random signs.
    """

    step: int
    data_fingerprint: str
    num_examples: int
    verdict: str
    checks: tuple[Row, ...]
    epsilons: tuple[float, ...]
    accuracies: tuple[float, ...]
    offsets: Float[np.ndarray, "points"]
    losses: Float[np.ndarray, "shown points points"]

    @property
    def fired(self) -> tuple[Row, ...]:
        """The checks that fired."""
        return tuple(check for check in self.checks if check.fired)

    @property
    def not_run(self) -> tuple[Row, ...]:
        """The checks that lacked what they need."""
        return tuple(check for check in self.checks if check.fired is None)


def load_diagnosis(directory: pathlib.Path) -> ReportedDiagnosis | None:
    """Reads the diagnostics in an evaluation's directory; None if there are none.

    Raises:
      UsageError: the files are not what the diagnostics write.
    """
    path = directory / FILE
    if not path.exists():
        return None
    record = read_result(path)
    arrays = read_arrays(path.with_suffix(".npz"), ["landscape_offsets", "landscape_losses"])
    try:
        curve = record["epsilon_curve"]
        found = ReportedDiagnosis(
            step=record["step"],
            data_fingerprint=record["data_fingerprint"],
            num_examples=record["num_examples"],
            verdict=record["verdict"],
            checks=tuple(rows_in(record)),
            epsilons=tuple(map(float, curve["epsilons"])),
            accuracies=tuple(map(float, curve["accuracy"])),
            offsets=arrays["landscape_offsets"],
            losses=arrays["landscape_losses"],
        )
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{path}: is not what the diagnostics write: {e!r}") from e
    if len(found.epsilons) != len(found.accuracies):
        raise UsageError(f"{path}: epsilon_curve has not one accuracy for each epsilon")
    return found


def rows_in(record: dict[str, Any]) -> list[Row]:
    """The rows of a result file."""
    return [Row(**row) for row in record["rows"]]
