"""Files that let an interrupted evaluation continue, and the check that they belong to it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from ancra_jax.ops import files
from ancra_jax.ops.files import AnyPath


class StateError(ValueError):
    """A saved state that cannot be continued; the message names it and says what to do."""


def check_same(
    directory: AnyPath, saved_digest: str, saved_probe: np.ndarray, digest: str, probe: np.ndarray
) -> None:
    """Refuse a saved state that belongs to another evaluation than the one at hand.

    The digests are those of ``Job.fingerprint``. The probes are logits of the first natural images,
    which stand for the model's weights; they may differ by rounding.

    Raises:
      StateError: the images, labels, settings or logits differ.
    """
    scale = np.abs(saved_probe).max() + 1e-12
    same_model = saved_probe.shape == probe.shape and np.allclose(
        saved_probe / scale, probe / scale, atol=1e-3
    )
    if saved_digest == digest and same_model:
        return
    other = "another model" if saved_digest == digest else "other images, labels or settings"
    raise StateError(
        f"state_path={directory} holds an evaluation of {other}; choose another directory, or "
        "delete it to start again"
    )


def write_atomically(path: AnyPath, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, in a directory that is made if needed, and move it there.

    Raises:
      StateError: the directory or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, write)
    except OSError as error:
        raise StateError(f"state_path={path.parent}: cannot be written: {error}") from error


def append_line(path: AnyPath, line: str) -> None:
    """Append a line to a text file in one piece, so that lines of several processes never mix.

    Raises:
      StateError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.append(path, f"{line}\n".encode())
    except OSError as error:
        raise StateError(f"log_path={path}: cannot be written: {error}") from error


def write_arrays(path: AnyPath, arrays: Mapping[str, Any]) -> None:
    """Write arrays as an ``.npz`` file; see ``write_atomically``."""
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read_arrays(path: AnyPath, needed: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Read all arrays from an ``.npz`` file.

    Raises:
      StateError: the file is damaged, or an array that is needed is missing.
    """
    try:
        return files.read_arrays(path, tuple(needed), field=path.name)
    except ValueError as error:
        raise unreadable(path, error) from error


def unreadable(path: AnyPath, reason: object) -> StateError:
    """Return the error that a file of a state is not what was written there."""
    return StateError(
        f"state_path={path.parent}: {path.name} is not a readable state ({reason}); "
        "delete the directory to start again"
    )
