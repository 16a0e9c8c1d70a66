"""Files of weights: which kinds there are, and where in a checkpoint the weights are."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ancra_jax.errors import UsageError
from ancra_jax.interop import pickles, safetensors
from ancra_jax.ops.files import read_arrays
from ancra_jax.ops.pytree import check_finite

StateDict = dict[str, np.ndarray]

ENTRIES = (
    *("state_dict", "model_state_dict", "model", "net", "network"),
    *("model_ema", "ema", "ema_state_dict", "ema_model_state_dict", "state_dict_ema"),
)
"""What the weights of a checkpoint are called in it; the first of them is taken."""

_DEPTH = 8  # of entries in one another; a dict may hold itself


class Weights(NamedTuple):
    """Arrays by name, and where they were found."""

    arrays: StateDict  # floating-point ones are float32
    entry: str  # ``'model/state_dict'``; '' if the file holds nothing else
    others: tuple[str, ...]  # entries of the same names that could have been taken


def load_state_dict(path: str | os.PathLike[str], entry: str = "") -> StateDict:
    """Read the weights in a file; arguments and errors are those of `read_weights`."""
    return read_weights(path, entry).arrays


def read_weights(path: str | os.PathLike[str], entry: str = "") -> Weights:
    """Read the weights in a file of ``torch.save``, a ``.safetensors`` or an ``.npz`` file.

    Nothing that the file may hold is executed, and PyTorch is not needed.

    Args:
      path: ends in one of ``FORMATS``.
      entry: which part of a checkpoint to take, ``'model_ema'`` or ``'model/state_dict'``; '' for
        the first of ``ENTRIES``, and so on inside of it.

    Raises:
      UsageError: the file is missing, of another kind, damaged, or holds code or other than dense
        tensors of finite floats and whole numbers; there is no such entry.
    """
    path = Path(path)
    field = f"weights {path}"
    read = next((read for end, read in FORMATS.items() if path.name.lower().endswith(end)), None)
    if not path.is_file():
        raise UsageError(f"{field}: no such file")
    if read is None:
        raise UsageError(f"{field}: {', '.join(FORMATS)} files are allowed")
    weights = read(path, field, entry)
    check_finite(weights.arrays, field)
    return weights


def _read_pickle(path: Path, field: str, entry: str) -> Weights:
    content, tensor = pickles.read(path, field)
    content, taken, others = _find(content, entry, field)
    arrays = {}
    for key, value in content.items():
        if not pickles.is_tensor(value):
            kind = value.name if isinstance(value, pickles.Note) else type(value).__name__
            inside = [str(key) for key in content if isinstance(content[key], Mapping)]
            hint = f"; entries that may hold weights: {', '.join(inside[:5])}" if inside else ""
            raise UsageError(f"{field}: {key!r} is a {kind}, not a tensor{hint}")
        arrays[str(key)] = tensor(value, str(key))
    return Weights(arrays, taken, others)


def _find(content: Any, entry: str, field: str) -> tuple[Mapping[Any, Any], str, tuple[str, ...]]:
    """Return the part of a checkpoint with the weights, its entry, and those beside it."""
    taken: list[str] = []
    others: list[str] = []
    for key in filter(None, entry.split("/")):
        if not isinstance(content, Mapping) or key not in content:
            there = list(map(str, content)) if isinstance(content, Mapping) else []
            raise UsageError(
                f"{field}: has no entry {entry!r}; there are {', '.join(there[:8]) or 'none'}"
            )
        content = content[key]
        taken.append(key)
    while isinstance(content, Mapping) and len(taken) < _DEPTH:
        found = [key for key in ENTRIES if isinstance(content.get(key), Mapping)]
        if not found:
            break
        others += ["/".join([*taken, key]) for key in found[1:]]
        taken.append(found[0])
        content = content[found[0]]
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"{field}: no dict of tensors found in it")
    return content, "/".join(taken), tuple(others)


def _read_safetensors(path: Path, field: str, entry: str) -> Weights:
    _no_entries(entry, field)
    return Weights(safetensors.read(path, field)[0], "", ())


def _read_npz(path: Path, field: str, entry: str) -> Weights:
    _no_entries(entry, field)
    arrays = read_arrays(path, field=field)
    floats = {name for name, one in arrays.items() if jnp.issubdtype(one.dtype, jnp.floating)}
    return Weights(
        {name: one.astype("f4") if name in floats else one for name, one in arrays.items()}, "", ()
    )


def _no_entries(entry: str, field: str) -> None:
    if entry:
        raise UsageError(f"{field}: has no entries, so none is called {entry!r}")


FORMATS: dict[str, Callable[[Path, str, str], Weights]] = {
    **dict.fromkeys((".pt", ".pth", ".pth.tar", ".pt.tar", ".ckpt", ".bin"), _read_pickle),
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}
"""How files are read, by what their names end in."""
