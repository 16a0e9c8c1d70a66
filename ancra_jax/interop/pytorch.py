"""Weights from and to PyTorch, by the reference implementations' names.

Both directions read one table: every leaf of the network's variables with the name that its PyTorch
twin has. Reverse attention adds no weights, so networks with and without it share their names.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ancra_jax import models
from ancra_jax.errors import UsageError
from ancra_jax.interop import safetensors
from ancra_jax.ops.archives import open_zip, unpacked_limit

StateDict = dict[str, np.ndarray]

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# HWIO -> OIHW and (in, out) -> (out, in).
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}

# What an architecture's modules are called in PyTorch; the first fitting pattern counts.
_Names = tuple[tuple[str, str], ...]
_RESNET_NAMES: _Names = (
    (r"layer(\d+)_(\d+)", r"layer\1.\2"),
    (r"shortcut_conv", r"shortcut.0"),
    (r"shortcut_bn", r"shortcut.1"),
)
_WIDE_RESNET_NAMES: _Names = (
    (r"block(\d+)_(\d+)", r"block\1.layer.\2"),
    (r"shortcut_conv", r"convShortcut"),
    (r"bn", r"bn1"),
)
_NAMES: dict[type, _Names] = {
    models.ResNet18: _RESNET_NAMES,
    models.PreActResNet18: (*_RESNET_NAMES, (r"fc", r"linear")),
    models.WideResNet: _WIDE_RESNET_NAMES,
}
# Counters, and the first group that the reference WideResNet builds twice and never uses.
_IGNORED = re.compile(r"sub_block1\..*|.*num_batches_tracked")


def to_variables(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Make Flax variables of a PyTorch state dict.

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
    given, leaves = {}, {}
    for key, value in state_dict.items():
        torch_name = key.removeprefix("module.")
        if not _IGNORED.fullmatch(torch_name):
            given[torch_name] = _checked_array(key, value)
    for torch_name, path in _paths(name, given).items():
        array = given[torch_name]
        from_torch = np.argsort(_TO_TORCH[array.ndim])
        leaves[path] = jnp.asarray(array.transpose(from_torch), jnp.float32)
    return unflatten_dict(leaves)


def from_variables(name: str, variables: Mapping[str, Any]) -> StateDict:
    """Make a PyTorch state dict of Flax variables, which `to_variables` turns back exactly.

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
    modules = _module_names(name)
    collections = {key: variables.get(key, {}) for key in ("params", "batch_stats")}
    given = {}
    for path, value in flatten_dict(collections).items():
        array = _checked_array("/".join(path), value)
        axes = _TO_TORCH.get(array.ndim, range(array.ndim))
        given[_torch_name(path, modules)] = array.transpose(axes)
    return {key: np.array(given[key], np.float32, order="C") for key in _paths(name, given)}


def load_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read the weights in a ``.pt``, ``.pth`` or ``.safetensors`` file.

    PyTorch files are read with ``weights_only=True``, which runs no code that the file may carry,
    and need PyTorch installed. Checkpoints that keep the weights under ``state_dict``,
    ``model_state_dict``, ``model`` or ``net`` are unwrapped.

    Returns:
      NumPy arrays by name; floating-point ones are float32.

    Raises:
      UsageError: the file is missing, of another kind, damaged, holds more than dense tensors of
        floats and whole numbers, or needs PyTorch, which is not installed.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], StateDict]] = {
        ".pt": _read_torch,
        ".pth": _read_torch,
        ".safetensors": lambda path: safetensors.read(path, f"weights {path}")[0],
    }
    if path.suffix not in readers:
        raise UsageError(f"weights {path}: {', '.join(readers)} files are allowed")
    if not path.is_file():
        raise UsageError(f"weights {path}: no such file")
    try:
        return readers[path.suffix](path)
    except ImportError as error:
        raise UsageError(f"weights {path}: pip install {error.name}, which reads them") from error


def _module_names(name: str) -> _Names:
    network = type(models.create(name, num_classes=2))
    if network not in _NAMES:
        raise UsageError(f"model {name!r}: no PyTorch names are known for a {network.__name__}")
    return _NAMES[network]


def _torch_name(path: tuple[str, ...], names: _Names) -> str:
    """Return ``'layer1.0.conv1.weight'`` for ``('params', 'layer1_0', 'conv1', 'kernel')``."""
    *modules, leaf = path[1:]
    renamed = []
    for module in modules:
        rules = (rule for rule in names if re.fullmatch(rule[0], module))
        pattern, replacement = next(rules, (module, module))
        renamed.append(re.sub(pattern, replacement, module))
    return ".".join([*renamed, _LEAF_NAMES.get(leaf, leaf)])


def _paths(name: str, given: StateDict) -> dict[str, tuple[str, ...]]:
    """Return where each array belongs in the variables, or refuse those of another network."""
    names = _module_names(name)
    stem = _torch_name(("params", "conv1", "kernel"), names)
    classifier = _torch_name(("params", "fc", "kernel"), names)
    for key, ndim in ((stem, 4), (classifier, 2)):
        if key not in given:
            raise UsageError(f"weights of {name}: {key!r} is missing")
        if given[key].ndim != ndim:
            raise UsageError(f"weights of {name}: {key!r} has shape {given[key].shape}")
    width, channels = given[stem].shape[:2]
    num_classes, num_features = given[classifier].shape
    network = models.create(name, num_classes=num_classes, width=width)
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    leaves = flatten_dict(jax.eval_shape(network.init, jax.random.key(0), images))
    paths = {_torch_name(path, names): path for path in leaves}
    shapes = {
        key: tuple(leaves[path].shape[axis] for axis in _TO_TORCH[leaves[path].ndim])
        for key, path in paths.items()
    }
    if num_features % shapes[classifier][1] == 0:  # larger images leave several cells per channel
        shapes[classifier] = (num_classes, num_features)
    wrong = [key for key in shapes if key in given and given[key].shape != shapes[key]]
    problems = {
        "missing": [key for key in shapes if key not in given],
        "unexpected": [key for key in given if key not in shapes],
        "of wrong shape": [f"{key} {given[key].shape} instead of {shapes[key]}" for key in wrong],
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise UsageError(f"weights of {name}: {'; '.join(found)}")
    return paths


def _checked_array(name: str, value: object) -> np.ndarray:
    if not isinstance(value, np.ndarray | jax.Array):
        raise UsageError(
            f"weights {name!r} are a {type(value).__name__}: a NumPy array is needed "
            "(load_state_dict reads PyTorch files)"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UsageError(f"weights {name!r} of dtype {value.dtype}: floating point is needed")
    return np.asarray(value)


def _read_torch(path: Path) -> StateDict:
    field = f"weights {path}"
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with open_zip(path, field):  # What it says of its members is checked before PyTorch reads.
            pass
    import torch

    try:
        with warnings.catch_warnings():  # of its own use of what it deprecates
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the exceptions of a damaged or unsafe file are not documented
        told = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
        reason = re.split(r"[.] |[.]?\n|[.]?$", told)[0]
        raise UsageError(
            f"{field}: damaged, or holds more than weights, which is not read because it could run "
            f"code ({reason}); write it with torch.save(model.state_dict(), FILE)"
        ) from error
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"{field}: no dict of tensors found in it")
    state_dict, left = {}, unpacked_limit(path)
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise UsageError(f"{field}: {key!r} is a {type(value).__name__}, not a tensor")
        left -= value.numel() * max(4, value.element_size())
        what = {
            f"of layout {value.layout}": value.layout != torch.strided,
            "quantised": value.is_quantized,
            "of the device 'meta', without values": value.is_meta,
            f"of dtype {value.dtype}": value.is_floating_point() and value.element_size() < 2,
            "larger than its file": left < 0,
        }
        if wrong := [name for name, found in what.items() if found]:
            raise UsageError(f"{field}: {key!r} is {wrong[0]}; dense tensors of floats are allowed")
        # NumPy has no bfloat16.
        tensor = value.detach().float() if value.is_floating_point() else value
        state_dict[str(key)] = tensor.resolve_conj().resolve_neg().numpy()
    return state_dict
