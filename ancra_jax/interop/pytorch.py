"""Weights by PyTorch's names as variables of a network, and back.

Both directions read the table in `ancra_jax.interop.names`.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ancra_jax import models
from ancra_jax.errors import UsageError
from ancra_jax.interop.names import Path, layouts
from ancra_jax.interop.reading import StateDict as StateDict
from ancra_jax.interop.reading import load_state_dict as load_state_dict

# HWIO -> OIHW and (in, out) -> (out, in).
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
# Counters, the first group that TRADES' WideResNet builds twice and never uses, and the second
# name that Andriushchenko's PreActResNet has for its first layers.
_IGNORED = re.compile(
    r"(.*\.)?(sub_block1\..*|model_preact_hl1\..*|num_batches_tracked|n_averaged)"
)
# What a normalisation of the images keeps, in the network itself or in a wrapper around it.
_MEAN, _STD = (re.compile(rf"(?:.*\.)?(?:new_)?(?:{names})") for names in ("mean|mu", "std|sigma"))
_STEM, _CLASSIFIER = ("params", "conv1", "kernel"), ("params", "fc", "kernel")
_SHOWN = 3  # names in an error


class Imported(NamedTuple):
    """A network that was found in a state dict."""

    variables: dict[str, Any]  # ``{'params': ..., 'batch_stats': ...}``, float32
    num_classes: int
    width: int  # channels of the stem
    channels: int  # of the images
    mean: tuple[float, ...]  # of its normalisation of the images; empty if it has none
    std: tuple[float, ...]
    layout: str  # one of ``names.layouts``
    prefix: str  # of all its names, ``'module.'``


def to_variables(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Make Flax variables of a PyTorch state dict; arguments and errors are those of `identify`.

    Raises:
      UsageError: the network normalises its images, which its variables cannot say.
    """
    found = identify(name, state_dict)
    if found.mean:
        raise UsageError(
            f"weights of {name}: it has a mean {found.mean} and a std {found.std} of images; "
            "interop.pytorch.identify returns them"
        )
    return found.variables


def identify(name: str, state_dict: Mapping[str, Any]) -> Imported:
    """Find a network in a PyTorch state dict.

    Names may have any prefix, ``module.``, ``model.``, ``_orig_mod.``, ``1.`` or several; which of
    the known layouts they follow is found out, and number of classes, of channels and the width
    follow from the shapes. Counters (``num_batches_tracked``), TRADES' unused ``sub_block1`` and
    Andriushchenko's ``model_preact_hl1``, which holds tensors a second time, are ignored.
    Entries called mean and std, or mu and sigma, are the normalisation of the images.

    Args:
      name: a name that `ancra_jax.models.create` takes: ``'resnet18'``, ``'preact_resnet18'``,
        ``'wide_resnet28_10'`` ...
      state_dict: floating-point NumPy arrays by PyTorch name, kernels as PyTorch stores them.

    Raises:
      UsageError: an unknown network, or names, shapes or dtypes that are not the network's.
    """
    arrays = {
        key: _checked_array(key, value)
        for key, value in state_dict.items()
        if not _IGNORED.fullmatch(key)
    }
    best = max(_candidates(name, arrays), key=lambda one: len(one.paths.keys() & arrays.keys()))
    moments = {key: arrays.pop(key) for key in list(arrays) if _is_moment(key, best.paths)}
    shapes = _check(name, best.paths, arrays)
    num_classes, width, channels = shapes
    mean, std = _normalisation(name, moments, channels)
    leaves = {
        path: jnp.asarray(
            arrays[key].transpose(np.argsort(_TO_TORCH[arrays[key].ndim])), jnp.float32
        )
        for key, path in best.paths.items()
    }
    variables = unflatten_dict(leaves)
    return Imported(variables, num_classes, width, channels, mean, std, best.layout, best.prefix)


def from_variables(
    name: str, variables: Mapping[str, Any], *, layout: str = "", prefix: str = ""
) -> StateDict:
    """Make a PyTorch state dict of Flax variables, which `to_variables` turns back exactly.

    Load it with ``strict=False``: counters (``num_batches_tracked``) and TRADES' unused
    ``sub_block1`` are not in it.

    Args:
      name: of the network, as for `identify`.
      variables: ``{'params': ..., 'batch_stats': ...}``; other collections are left out.
      layout: whose names, one of ``names.layouts(name)``; '' for the first of them.
      prefix: of all names.

    Returns:
      Contiguous, writable float32 arrays by PyTorch name.

    Raises:
      UsageError: an unknown network or layout, or variables that are not the network's.
    """
    known = layouts(name)
    layout = layout or next(iter(known))
    if layout not in known:
        raise UsageError(f"layout={layout!r}: those of {name!r} are {', '.join(known)}")
    collections = {key: variables.get(key, {}) for key in ("params", "batch_stats")}
    given = {}
    for path, value in flatten_dict(collections).items():
        array = _checked_array("/".join(path), value)
        axes = _TO_TORCH.get(array.ndim, range(array.ndim))
        given[prefix + known[layout].name(path)] = array.transpose(axes)
    names = {prefix + known[layout].name(path): path for path in _leaves(name)}
    _check(name, names, given)
    return {key: np.array(given[key], np.float32, order="C") for key in names}


class _Candidate(NamedTuple):
    """One way in which the names of a state dict may be meant."""

    layout: str
    prefix: str
    paths: dict[str, Path]  # of the leaves, by name with the prefix


def _candidates(name: str, arrays: StateDict) -> list[_Candidate]:
    leaves, found = _leaves(name), []
    for key, layout in layouts(name).items():
        stem = layout.name(_STEM)
        prefixes = [one.removesuffix(stem) for one in arrays if f".{one}".endswith(f".{stem}")]
        for prefix in sorted({"", *prefixes}, key=len):
            found.append(
                _Candidate(key, prefix, {prefix + layout.name(one): one for one in leaves})
            )
    return found


@functools.lru_cache(maxsize=32)
def _leaves(
    name: str, num_classes: int = 2, width: int = 1, channels: int = 3
) -> dict[Path, jax.ShapeDtypeStruct]:
    network = models.create(name, num_classes=num_classes, width=width)
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    return flatten_dict(jax.eval_shape(network.init, jax.random.key(0), images))


def _check(name: str, paths: Mapping[str, Path], arrays: StateDict) -> tuple[int, int, int]:
    """Return the numbers of classes, stem channels and image channels; refuse other arrays."""
    missing = [key for key in paths if key not in arrays]
    unexpected = [key for key in arrays if key not in paths]
    wrong: list[str] = []
    by_path = {path: key for key, path in paths.items()}
    stem, classifier = by_path[_STEM], by_path[_CLASSIFIER]
    sizes = (0, 0, 0)
    if stem in arrays and classifier in arrays:
        wrong = [
            f"{key} {arrays[key].shape} instead of {ndim} dimensions of at least 1"
            for key, ndim in ((stem, 4), (classifier, 2))
            if arrays[key].ndim != ndim or 0 in arrays[key].shape
        ]
        if not wrong:
            num_classes, num_features = arrays[classifier].shape
            width, channels = arrays[stem].shape[:2]
            sizes = (num_classes, width, channels)
            shapes = {
                by_path[path]: tuple(leaf.shape[axis] for axis in _TO_TORCH[leaf.ndim])
                for path, leaf in _leaves(name, *sizes).items()
            }
            if num_features % shapes[classifier][1] == 0:
                # Larger images leave several cells per channel.
                shapes[classifier] = (num_classes, num_features)
            wrong = [
                f"{key} {arrays[key].shape} instead of {shape}"
                for key, shape in shapes.items()
                if key in arrays and arrays[key].shape != shape
            ]
    problems = {"missing": missing, "unexpected": unexpected, "of wrong shape": wrong}
    told = [f"{len(keys)} {kind} ({_few(keys)})" for kind, keys in problems.items() if keys]
    if missing and not unexpected and arrays:
        told.append(f"there are {_few(list(arrays))}")
    if told:
        raise UsageError(f"weights of {name}: {'; '.join(told)}")
    return sizes


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")


def _is_moment(key: str, paths: Mapping[str, Path]) -> bool:
    return key not in paths and bool(_MEAN.fullmatch(key) or _STD.fullmatch(key))


def _normalisation(
    name: str, moments: StateDict, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the images by channel; both empty if there are none."""
    found: list[tuple[float, ...]] = []
    for what, pattern in (("mean", _MEAN), ("std", _STD)):
        given = {key: value for key, value in moments.items() if pattern.fullmatch(key)}
        # The shortest decimals: 0.4914, not 0.4914000034332275.
        distinct = {
            tuple(float(str(one)) for one in value.astype("f4").ravel()) for value in given.values()
        }
        if len(distinct) > 1 or any(len(one) not in (1, channels) for one in distinct):
            shapes = ", ".join(f"{key} {value.shape}" for key, value in given.items())
            raise UsageError(
                f"weights of {name}: the {what} of the images must be one number, or {channels}, "
                f"and the same everywhere: {shapes}"
            )
        found += distinct
    if len(found) == 1:
        raise UsageError(f"weights of {name}: of mean and std there is only {_few(list(moments))}")
    if not found:
        return (), ()
    mean, std = (one * channels if len(one) == 1 else one for one in found)
    return mean, std


def _checked_array(name: str, value: object) -> np.ndarray:
    if not isinstance(value, np.ndarray | jax.Array):
        raise UsageError(
            f"weights {name!r} are a {type(value).__name__}: a NumPy array is needed "
            "(load_state_dict reads PyTorch files)"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UsageError(f"weights {name!r} of dtype {value.dtype}: floating point is needed")
    return np.asarray(value)
