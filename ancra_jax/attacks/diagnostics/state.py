"""What the diagnostics have measured so far, kept on disk so that they can continue."""

import os
import zipfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np

from ancra_jax.attacks.saved_state import StateError, check_same_model

_IDENTITY = "identity"


class Measured(MutableMapping[str, dict[str, np.ndarray]]):
    """Measurements by name; with a directory, each is a file that is written as a whole."""

    def __init__(self, directory: Path | None, fingerprint: str, probe: np.ndarray):
        """Takes up what the directory holds.

        Args:
          directory: where the files are; made if it is not there. None keeps nothing.
          fingerprint: digest of the images, labels and settings.
          probe: clean logits of the first images, which stand for the model's weights.

        Raises:
          StateError: the directory holds measurements of something else, or damaged ones.
        """
        self._directory = directory
        self._known: dict[str, dict[str, np.ndarray]] = {}
        if directory is None:
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"state_path={directory}: cannot be written: {error}") from error
        files = {path.stem: _read(path) for path in sorted(directory.glob("*.npz"))}
        identity = files.pop(_IDENTITY, None)
        if identity is None:
            _write(directory, _IDENTITY, {"fingerprint": np.array(fingerprint), "probe": probe})
            return
        if str(identity["fingerprint"]) != fingerprint:
            raise StateError(
                f"state_path={directory} holds a diagnosis of other images, labels or settings; "
                "choose another directory, or delete it to start again"
            )
        check_same_model(directory, identity["probe"], probe)
        self._known = files

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        return self._known[name]

    def __setitem__(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        if self._directory is not None:
            _write(self._directory, name, arrays)
        self._known[name] = arrays

    def __delitem__(self, name: str) -> None:
        raise TypeError("measurements are not taken back")

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _write(directory, name, arrays):
    temporary = directory / f"{name}.tmp"
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, directory / f"{name}.npz")


def _read(path):
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StateError(
            f"state_path={path.parent}: {path.name} is not readable ({error}); "
            "delete the directory to start again"
        ) from error
