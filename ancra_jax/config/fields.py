"""Settings with what they allow, and plain data read into them."""

import builtins
import dataclasses
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ancra_jax.errors import UsageError
from ancra_jax.registry import did_you_mean

_BOUNDS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "greater than"),
    "at_most": (operator.le, "at most"),
}
_CHECKED = (bool, int, float, str, tuple[int, ...])  # annotations of settings that are checked
Options = dict[str, Any]
"""Settings that a method or a data set has beside those of the schema, by name."""


def number(default: int | float, **limits: int | float) -> Any:
    """Return a numeric field; limits are ``at_least``, ``above`` (itself excluded), ``at_most``."""
    return dataclasses.field(default=default, metadata=limits)


def choice(*allowed: str) -> Any:
    """Return a field that takes one of a few words, the first by default."""
    return dataclasses.field(default=allowed[0], metadata={"allowed": allowed})


def build(cls: Any, values: Any, path: str) -> Any:
    """Read nested plain data into a dataclass of such fields, or of such dataclasses.

    A setting that the mapping leaves out takes its default. Errors call the mapping ``path``.

    Raises:
      UsageError: a field that does not exist, has another type or is out of range, or one without
        a default is missing.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise UsageError(f"{path}={values!r}: must be a group of settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    missing = dataclasses.MISSING
    built = {}
    for name, value in values.items():
        if name not in fields:
            allowed = did_you_mean(name, fields) or f"allowed are {', '.join(fields) or 'none'}"
            raise UsageError(f"{path}.{name}: there is no such setting; {allowed.strip()}")
        built[name] = _checked(fields[name], value, f"{path}.{name}")
    for name, field in fields.items():
        required = field.default is missing and field.default_factory is missing
        if required and name not in built:
            raise UsageError(f"{path}.{name}: this setting is missing")
    return cls(**built)


def options_of(function: Callable[..., Any], values: Options, path: str) -> Options:
    """Check the settings of a plugged-in function, which are its keyword-only arguments.

    Args:
      function: such as ``def consistency(config, attack, *, temperature: float = 1.0)``. Arguments
        annotated with ``bool``, ``int``, ``float``, ``str`` or ``tuple[int, ...]`` are checked.
      values: those that were given; they are returned, whole numbers for ``float`` converted.
      path: what to call them in errors.

    Raises:
      UsageError: a setting that the function does not have, of another type, or missing.
    """
    fields = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind = parameter.annotation
            if isinstance(kind, str):  # of a module with ``from __future__ import annotations``
                kind = getattr(builtins, kind, object)
            optional = parameter.default is not parameter.empty
            default = None if optional else dataclasses.MISSING  # the function knows its own
            field = dataclasses.field(default=default)
            fields.append((name, kind if kind in _CHECKED else object, field))
    options = build(dataclasses.make_dataclass("Options", fields, kw_only=True), values, path)
    return {name: getattr(options, name) for name in values}


def _checked(field: dataclasses.Field[Any], value: Any, path: str) -> Any:
    kind: Any = field.type
    if dataclasses.is_dataclass(kind):
        return build(kind, value, path)
    if kind == Options:
        return _plain(value, path)
    if kind == tuple[int, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(n, int) for n in value):
            raise UsageError(f"{path}={value!r}: must be a sequence of whole numbers")
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    wrong = isinstance(kind, type) and not isinstance(value, kind)
    if wrong or (isinstance(value, bool) and kind in (int, float)):
        raise UsageError(f"{path}={value!r}: must be of type {kind.__name__}")
    _check_range(field.metadata, value, path)
    return value


def _plain(value: Any, path: str) -> Any:
    """Return plain data as dictionaries, tuples, words and numbers that JSON can hold."""
    if isinstance(value, Mapping | ConfigDict):
        return {str(name): _plain(item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item, path) for item in value)
    if not isinstance(value, bool | int | float | str):
        raise UsageError(f"{path}={value!r}: must be a number, a word, True or False, or several")
    _check_range({}, value, path)
    return value


def _check_range(limits: Mapping[str, Any], value: Any, path: str) -> None:
    allowed = limits.get("allowed")
    if allowed and value not in allowed:
        hint = did_you_mean(value, allowed)
        raise UsageError(f"{path}={value!r}: {hint}allowed are {', '.join(map(repr, allowed))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{path}={value}: must be finite")
    for bound, (fits, words) in _BOUNDS.items():
        if bound in limits and not fits(value, limits[bound]):
            raise UsageError(f"{path}={value}: must be {words} {limits[bound]}")
