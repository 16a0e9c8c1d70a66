"""Settings with what they allow, and plain data read into them."""

import builtins
import dataclasses
import difflib
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ancra_jax.config.paths import path_text
from ancra_jax.errors import Problems, UsageError
from ancra_jax.registry import did_you_mean

_BOUNDS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "greater than"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
}
_MOST = 2**31 - 1  # steps and sizes are int32
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of float32
_SEQUENCES: dict[Any, tuple[str, tuple[type, ...]]] = {
    tuple[int, ...]: ("whole numbers", (int,)),
    tuple[float, ...]: ("numbers", (int, float)),
}
_CHECKED = (bool, int, float, str, *_SEQUENCES)  # annotations of settings that are checked
Options = dict[str, Any]
"""Settings that a method or a data set has beside those of the schema, by name."""


def number(default: int | float | tuple[int, ...], **limits: int | float) -> Any:
    """Return a field of one or of several numbers.

    Limits are ``at_least`` and ``at_most``, ``above`` and ``below``, which leave themselves out.
    """
    most = {"at_most": _MOST} if isinstance(default, int) else {}
    return dataclasses.field(default=default, metadata=most | limits)


def choice(*allowed: str) -> Any:
    """Return a field that takes one of a few words, the first by default."""
    return dataclasses.field(default=allowed[0], metadata={"allowed": allowed})


def path(*, remote: bool = False) -> Any:
    """Return a field that takes a path, empty by default; ``remote``: or an address, gs://..."""
    return dataclasses.field(default="", metadata={"remote": remote})


def is_mapping(value: Any) -> bool:
    """Return whether it is a mapping or a ConfigDict, of a package that may not be installed."""
    return hasattr(value, "items")


def build(cls: Any, values: Any, name: str, problems: Problems) -> Any:
    """Read nested plain data into a dataclass of such fields, or of such dataclasses.

    A setting that the mapping leaves out, or that has a wrong value, takes its default. Wrong are a
    field that does not exist, has another type or is out of range, or one without a default that is
    missing: then nothing is returned. The problems call the mapping ``name``.
    """
    return _build(cls, values, name, problems, _names(cls, name))


def _build(cls: Any, values: Any, path: str, problems: Problems, known: list[str]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not is_mapping(values):
        problems.add(f"{path}={values!r}: is a group of settings: {', '.join(fields)}")
        values = {}
    missing = dataclasses.MISSING
    built, complete = {}, True
    for name, value in values.items():
        place = f"{path}.{name}"
        if name not in fields:
            problems.add(f"{place}: there is no such setting; {_near(place, known, fields)}")
        elif dataclasses.is_dataclass(fields[name].type):
            built[name] = _build(fields[name].type, value, place, problems, known)
            complete &= built[name] is not None
        else:
            with problems.collect():
                built[name] = _checked(fields[name], value, place)
    for name, field in fields.items():
        if field.default is missing and field.default_factory is missing and name not in built:
            complete = False
            if name not in values:
                problems.add(f"{path}.{name}: this setting is missing")
    return cls(**built) if complete else None


def _names(cls: Any, path: str) -> list[str]:
    """Return the names of all settings of a dataclass and of the groups in it."""
    names = []
    for field in dataclasses.fields(cls):
        place = f"{path}.{field.name}"
        names += _names(field.type, place) if dataclasses.is_dataclass(field.type) else [place]
    return names


def _near(place: str, known: list[str], fields: Mapping[str, Any]) -> str:
    """Return where the name exists, else which names are near it, else what there is."""
    last = place.rpartition(".")[2]
    namesakes = [name for name in known if name.rpartition(".")[2] == last]
    siblings = [f"{place.rpartition('.')[0]}.{name}" for name in fields]
    near = difflib.get_close_matches(place, [*siblings, *known], n=2, cutoff=0.75)
    if namesakes or near:
        return f"did you mean {' or '.join(dict.fromkeys(namesakes + near))}?"
    return f"allowed are {', '.join(fields) or 'none'}"


def options_of(function: Callable[..., Any], values: Mapping[str, Any], path: str) -> Options:
    """Check the settings of a plugged-in function, which are its keyword-only arguments.

    Args:
      function: such as ``def consistency(config, attack, *, temperature: float = 1.0)``. Arguments
        annotated with ``bool``, ``int``, ``float``, ``str``, ``tuple[int, ...]`` or
        ``tuple[float, ...]`` are checked.
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
    problems = Problems()
    cls = dataclasses.make_dataclass("Options", fields, kw_only=True)
    options = build(cls, values, path, problems)
    problems.raise_all()
    return {name: getattr(options, name) for name in values}


def _checked(field: dataclasses.Field[Any], value: Any, path: str) -> Any:
    kind: Any = field.type
    if kind == Options:
        if not is_mapping(value):
            raise UsageError(f"{path}={value!r}: is a group of settings, {path}.NAME=VALUE")
        return _plain(value, path)
    if kind in _SEQUENCES:
        what, kinds = _SEQUENCES[kind]
        if not isinstance(value, list | tuple) or not all(type(n) in kinds for n in value):
            raise UsageError(f"{path}={value!r}: must be a sequence of {what}")
        for number in value:
            _check_range(field.metadata, number, path)
        return tuple(map(kinds[-1], value))
    if kind is float and type(value) is int and abs(value) <= _LARGEST:
        value = float(value)
    wrong = isinstance(kind, type) and not isinstance(value, kind)
    if wrong or (isinstance(value, bool) and kind in (int, float)):
        raise UsageError(f"{path}={value!r}: must be of type {kind.__name__}")
    _check_range(field.metadata, value, path)
    if "remote" in field.metadata:
        return path_text(value, path, remote=field.metadata["remote"])
    return value


def _plain(value: Any, path: str) -> Any:
    """Return plain data as dictionaries, tuples, words and numbers that JSON can hold."""
    if is_mapping(value):
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
    if isinstance(value, float) and value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise UsageError(
            f"{path}={value}: must be 0 or from {_SMALLEST:.2g} to {_LARGEST:.2g} in size (float32)"
        )
    for bound, (fits, words) in _BOUNDS.items():
        if bound in limits and not fits(value, limits[bound]):
            raise UsageError(f"{path}={value}: must be {words} {limits[bound]}")
