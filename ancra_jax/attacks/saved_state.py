"""What the saved states of interrupted calls share."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


class StateError(ValueError):
    """A saved state that cannot be continued; the message names it and says what to do."""


def fingerprint(images: np.ndarray, labels, indices, settings: dict[str, Any]) -> str:
    """Digest of everything but the model that decides an evaluation's result."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in (images, labels, indices):
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_same_model(directory: Path | None, saved: np.ndarray, fresh: np.ndarray) -> None:
    """Refuses a state whose first clean logits are not those of the model at hand.

    Raises:
      StateError: they differ by more than rounding.
    """
    scale = np.abs(saved).max() + 1e-12
    if saved.shape != fresh.shape or not np.allclose(saved / scale, fresh / scale, atol=1e-3):
        raise StateError(
            f"state_path={directory} holds an evaluation of another model; choose another "
            "directory, or delete it to start again"
        )
