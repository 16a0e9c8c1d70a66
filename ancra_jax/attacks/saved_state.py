"""Files that let an interrupted evaluation continue, and the check that they belong to it."""

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, BinaryIO, cast

import jax
import numpy as np

from ancra_jax.ops import files
from ancra_jax.ops.files import AnyPath


class StateError(ValueError):
    """A saved state that cannot be continued; the message names it and says what to do."""


def check_same(
    directory: AnyPath,
    saved_digest: str,
    saved_probe: np.ndarray,
    digests: Iterable[str],
    probe: np.ndarray,
) -> None:
    """Refuse a saved state that belongs to another evaluation than the one at hand.

    The digests are those of ``Job.fingerprint``, of which the saved one has to be one. The probes
    are logits of the first natural images, which stand for the model's weights; they may differ by
    rounding.

    Raises:
      StateError: the images, labels, attacks, settings or logits differ.
    """
    scale = np.abs(saved_probe).max() + 1e-12
    same_model = saved_probe.shape == probe.shape and np.allclose(
        saved_probe / scale, probe / scale, atol=1e-3
    )
    same_digest = saved_digest in digests
    if same_digest and same_model:
        return
    other = "another model" if same_digest else "other images, labels, attacks or settings"
    raise StateError(
        f"state_path={directory} holds an evaluation of {other}; choose another directory, or "
        "delete it to start again"
    )


def digest(value: Any) -> str:
    """Return a digest of a function or a pytree that is the same in every process.

    It is of the values of arrays and numbers, of the names of functions (not of their code, nor of
    what they close over), and of the types of all other objects.
    """
    return hashlib.sha256(_text(value).encode()).hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, functools.partial):  # ``jax.tree_util.Partial`` is one
        return f"partial({_text(value.func)}, {_text(value.args)}, {_text(value.keywords)})"
    if inspect.ismethod(value):
        return f"method({_text(value.__func__)}, {_text(value.__self__)})"
    if not jax.tree_util.all_leaves([value]):
        leaves, structure = jax.tree.flatten(value)
        named = re.sub(r" at 0x[0-9a-f]+", "", str(structure))
        return f"{named}{[_text(leaf) for leaf in leaves]}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(cast(Any, value)) if is_key else value)
        contents = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return f"{array.dtype}{array.shape}{contents}"
    if isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if is_dataclass(value) and not isinstance(value, type):
        inside = [(entry.name, _text(getattr(value, entry.name))) for entry in fields(value)]
        return f"{type(value).__qualname__}{inside}"
    source: Any = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(source, '__module__', '')}.{source.__qualname__}"


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
