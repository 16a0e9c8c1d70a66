"""Weights from and to PyTorch, by the reference implementations' names.

Both directions read one table: every leaf of the network's variables with the name that its PyTorch
twin has. Reverse attention adds no weights, so networks with and without it share their names.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ancra_jax import models
from ancra_jax.errors import UsageError

StateDict = dict[str, np.ndarray]

_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# HWIO -> OIHW and (in, out) -> (out, in).
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


class _Naming(NamedTuple):
    """What an architecture's modules are called in PyTorch; the first fitting rule counts."""

    modules: tuple[tuple[str, str], ...]
    ignored_prefixes: tuple[str, ...] = ()


_RESNET_BLOCKS = (
    (r"layer(\d+)_(\d+)", r"layer\1.\2"),
    (r"shortcut_conv", r"shortcut.0"),
    (r"shortcut_bn", r"shortcut.1"),
)
_NAMINGS: dict[type, _Naming] = {
    models.ResNet18: _Naming(_RESNET_BLOCKS),
    models.PreActResNet18: _Naming((*_RESNET_BLOCKS, (r"fc", r"linear"))),
    models.WideResNet: _Naming(
        (
            (r"block(\d+)_(\d+)", r"block\1.layer.\2"),
            (r"shortcut_conv", r"convShortcut"),
            (r"bn", r"bn1"),
        ),
        # The reference builds its first group twice and never uses the second.
        ignored_prefixes=("sub_block1.",),
    ),
}


class _Entry(NamedTuple):
    """One leaf of the variables and its PyTorch twin."""

    path: tuple[str, ...]
    torch_name: str
    torch_shape: tuple[int, ...]


def to_variables(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Makes Flax variables of a PyTorch state dict.

    Width, number of classes and of input channels follow from the shapes. A ``module.`` prefix, the
    ``num_batches_tracked`` counters and the reference WideResNet's unused ``sub_block1`` are
    ignored.

    Args:
      name: a name that `ancra_jax.models.create` takes: ``'resnet18'``, ``'preact_resnet18'``,
        ``'wide_resnet28_10'`` ...
      state_dict: floating-point NumPy arrays by PyTorch name, kernels as PyTorch stores them.

    Returns:
      ``{'params': ..., 'batch_stats': ...}``, float32.

    Raises:
      UsageError: an unknown network, or names, shapes or dtypes that are not the network's.
    """
    ignored = _naming(name).ignored_prefixes
    given = {}
    for key, value in state_dict.items():
        torch_name = key.removeprefix("module.")
        if not torch_name.endswith("num_batches_tracked") and not torch_name.startswith(ignored):
            given[torch_name] = _checked_array(key, value)
    return unflatten_dict(
        {
            entry.path: jnp.asarray(_to_flax_layout(given[entry.torch_name]), jnp.float32)
            for entry in _matched_table(name, given)
        }
    )


def from_variables(name: str, variables: Mapping[str, Any]) -> StateDict:
    """Makes a PyTorch state dict of Flax variables; the exact inverse of `to_variables`.

    Load it with ``strict=False``: counters (``num_batches_tracked``) and the reference WideResNet's
    unused ``sub_block1`` are not in it.

    Args:
      name: of the network, as for `to_variables`.
      variables: ``{'params': ..., 'batch_stats': ...}``; other collections are left out.

    Returns:
      Contiguous, writable float32 arrays by PyTorch name.

    Raises:
      UsageError: an unknown network, or variables that are not the network's.
    """
    naming = _naming(name)
    collections = {key: variables.get(key, {}) for key in ("params", "batch_stats")}
    given = {
        _torch_name(path, naming): _to_torch_layout(_checked_array("/".join(path), value))
        for path, value in flatten_dict(collections).items()
    }
    return {
        entry.torch_name: np.array(given[entry.torch_name], np.float32, order="C")
        for entry in _matched_table(name, given)
    }


def load_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Reads the weights in a ``.pt``, ``.pth`` or ``.safetensors`` file.

    PyTorch files are read with ``weights_only=True``, which runs no code that the file may carry,
    and need PyTorch installed. Checkpoints that keep the weights under ``state_dict``,
    ``model_state_dict``, ``model`` or ``net`` are unwrapped.

    Returns:
      NumPy arrays by name; floating-point ones are float32.

    Raises:
      UsageError: the file is missing, of another kind, damaged, holds more than weights, or the
        package that reads it is not installed.
    """
    path = Path(path)
    readers = {".pt": _read_torch, ".pth": _read_torch, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise UsageError(f"weights {path}: {', '.join(readers)} files are allowed")
    if not path.is_file():
        raise UsageError(f"weights {path}: no such file")
    return readers[path.suffix](path)


def _naming(name: str) -> _Naming:
    network = type(models.create(name, num_classes=2))
    if network not in _NAMINGS:
        raise UsageError(f"model {name!r}: no PyTorch names are known for a {network.__name__}")
    return _NAMINGS[network]


def _torch_name(path: tuple[str, ...], naming: _Naming) -> str:
    """``('params', 'layer1_0', 'conv1', 'kernel')`` -> ``'layer1.0.conv1.weight'``."""
    *modules, leaf = path[1:]
    renamed = []
    for module in modules:
        rules = (rule for rule in naming.modules if re.fullmatch(rule[0], module))
        pattern, replacement = next(rules, (module, module))
        renamed.append(re.sub(pattern, replacement, module))
    return ".".join([*renamed, _LEAF_NAMES.get(leaf, leaf)])


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(_TO_TORCH.get(array.ndim, range(array.ndim)))


def _to_flax_layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(np.argsort(_TO_TORCH[array.ndim]))


def _matched_table(name: str, given: StateDict) -> list[_Entry]:
    """Returns the table of the network that the arrays belong to, once they are all its own."""
    naming = _naming(name)
    stem_name = _torch_name(("params", "conv1", "kernel"), naming)
    classifier_name = _torch_name(("params", "fc", "kernel"), naming)
    for key, ndim in ((stem_name, 4), (classifier_name, 2)):
        if key not in given:
            raise UsageError(f"weights of {name}: {key!r} is missing")
        if given[key].ndim != ndim:
            raise UsageError(f"weights of {name}: {key!r} has shape {given[key].shape}")
    table = _table(name, naming, given[stem_name].shape, given[classifier_name].shape)
    expected = {entry.torch_name: entry.torch_shape for entry in table}
    problems = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [key for key in given if key not in expected],
        "of wrong shape": [
            f"{key} {given[key].shape} instead of {shape}"
            for key, shape in expected.items()
            if key in given and given[key].shape != shape
        ],
    }
    found = [f"{len(v)} {kind} ({_first(v)})" for kind, v in problems.items() if v]
    if found:
        raise UsageError(f"weights of {name}: {'; '.join(found)}")
    return table


def _table(
    name: str, naming: _Naming, stem: tuple[int, ...], classifier: tuple[int, ...]
) -> list[_Entry]:
    """All leaves of a network whose stem and classifier have these shapes in PyTorch."""
    model = models.create(name, num_classes=classifier[0], width=stem[0])
    images = jax.ShapeDtypeStruct((1, 32, 32, stem[1]), jnp.float32)
    variables = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images))
    table = []
    for path, leaf in variables.items():
        shape = tuple(leaf.shape[axis] for axis in _TO_TORCH[leaf.ndim])
        if path == ("params", "fc", "kernel") and classifier[1] % shape[1] == 0:
            shape = classifier  # images of more pixels leave several cells per channel
        table.append(_Entry(path, _torch_name(path, naming), shape))
    return table


def _checked_array(name: str, value: object) -> np.ndarray:
    if not isinstance(value, np.ndarray | jax.Array):
        raise UsageError(
            f"weights {name!r} are a {type(value).__name__}: a NumPy array is needed "
            "(load_state_dict reads PyTorch files)"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UsageError(f"weights {name!r} of dtype {value.dtype}: floating point is needed")
    return np.asarray(value)


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _read_torch(path: Path) -> StateDict:
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"weights {path}: PyTorch reads them (pip install torch)") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the exceptions of a damaged or unsafe file are not documented
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"weights {path}: damaged, or holds more than weights, which is not read because it "
            f"could run code ({reason})"
        ) from error
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"weights {path}: no dict of tensors found in it")
    state_dict = {}
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise UsageError(f"weights {path}: {key!r} is a {type(value).__name__}, not a tensor")
        value = value.detach()
        state_dict[str(key)] = (value.float() if value.is_floating_point() else value).numpy()
    return state_dict


def _read_safetensors(path: Path) -> StateDict:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise UsageError(
            f"weights {path}: safetensors reads them (pip install safetensors)"
        ) from error
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"weights {path}: not a readable safetensors file ({error})") from error
    return {
        key: value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for key, value in arrays.items()
    }
