"""The configuration that ``--config=FILE.py:METHOD`` and ``--config.NAME=VALUE`` make."""

import ast
import dataclasses
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ancra_jax.cli.files import configs_can_be_imported, find, import_file, shipped
from ancra_jax.config import Config, read
from ancra_jax.config.fields import is_mapping
from ancra_jax.errors import Problems, UsageError

Check = Callable[[Config, Problems], object]
Source = Any
"""``FILE.py:METHOD`` or all settings: a `Config`, its plain data, or a ``ConfigDict``."""
_SETTING = re.compile(r"\.[^/=]*=")  # unlike ./configs/digits.py:trades,beta=3
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def join_arguments(argv: Sequence[str]) -> list[str]:
    """Return the arguments with every setting, ``--config.x=y``, as ``--config=.x=y``.

    So one flag takes the file and the settings in their order. ``--config.x`` alone is True,
    ``--noconfig.x`` False.
    """
    joined: list[str] = []
    rest = iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        dashes, _, setting = name.partition("config.")
        if argument == "--":
            return [*joined, argument, *rest]
        if dashes not in ("-", "--", "-no", "--no"):
            joined.append(argument)
            continue
        if dashes.endswith("no"):
            value = "False"
        elif not equals:
            kind = _kind_of(setting)
            value = "True" if kind is bool else next(rest, "")
        joined.append(f"--config=.{setting}={value}")
    return joined


def read_settings(arguments: Sequence[str], check: Check = lambda config, problems: None) -> Config:
    """Return the configuration of a file with settings changed.

    Args:
      arguments: ``FILE.py:METHOD``, and settings as ``.NAME=VALUE``. A file that is not there may
        be one of those that come with the package, ``digits.py``.
      check: what else may be wrong with it; is not called where it cannot be read at all.

    Raises:
      UsageError: with everything that is wrong.
    """
    files = [argument for argument in arguments if not _SETTING.match(argument)]
    if len(files) != 1:
        wrong = "is missing, for instance --config=digits.py:trades"
        raise UsageError(f"--config {f'is given {len(files)} times' if files else wrong}")
    values = _load(files[0])
    problems = Problems()
    for argument in arguments:
        if _SETTING.match(argument):
            name, text = argument[1:].split("=", 1)
            with problems.collect():
                value = _value(text, _kind_of(name), f"--config.{name}={text}")
                for setting, one in _flat({name: value}):
                    _change(values, setting, one)
    return _checked(values, check, problems)


def settings_of(
    source: Source,
    changes: Mapping[str, Any],
    check: Check = lambda config, problems: None,
) -> Config:
    """Return the configuration that Python code names, with settings changed.

    Args:
      source: stays as it is.
      changes: values by dotted name, ``{"attack.epsilon": 0.1}``, or nested.
      check: as for `read_settings`.

    Raises:
      UsageError: with everything that is wrong.
    """
    if isinstance(source, Config):
        values = dataclasses.asdict(source)
    elif isinstance(source, str | os.PathLike):
        values = _load(os.fspath(source))
    else:
        values = _plain(source, f"config={source!r}")
    problems = Problems()
    for name, value in _flat(_plain(changes, "settings")):
        with problems.collect():
            _change(values, name, value)
    return _checked(values, check, problems)


def changed(given: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that `read_settings` or `settings_of` is told to change."""
    if isinstance(given, Mapping):
        return [name for name, _ in _flat(_plain(given, "settings"))]
    return [one[1:].partition("=")[0] for one in given if _SETTING.match(one)]


def _flat(changes: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of nested settings, and their values."""
    for name, value in changes.items():
        is_group = dataclasses.is_dataclass(_kind_of(f"{path}{name}"))
        if isinstance(value, dict) and (value or is_group):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _checked(values: Mapping[str, Any], check: Check, problems: Problems) -> Config:
    config = read(values, "--config", problems)
    if config is not None:
        check(config, problems)
    problems.raise_all()
    assert config is not None
    return config


def error_of(field: str, path: Path, error: Exception) -> UsageError:
    """Return what to say of an error in a user's file: the field, the line and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = f", line {lines[-1]}" if lines else ""
    return UsageError(f"{field}{line}: {type(error).__name__}: {error}")


def _load(argument: str) -> dict[str, Any]:
    """Call ``get_config`` of a file, which may import its neighbours from any directory."""
    name, colon, method = argument.partition(":")
    field = f"--config={argument}"
    path = find(name, field)
    if path.parent != shipped():
        sys.path.append(str(path.parent.parent))
    try:
        with configs_can_be_imported(path):
            get_config = getattr(import_file(path, "config_file"), "get_config", None)
            if not callable(get_config):
                raise UsageError(f"{field}: has no function get_config")
            takes = inspect.signature(get_config).parameters
            if colon and not takes:
                raise UsageError(f"{field}: its get_config takes no method; leave :{method} out")
            values = get_config(method) if colon else get_config()
    except UsageError:
        raise
    except LookupError as error:  # such as an unknown method, in words of the file's own
        if type(error) in (KeyError, IndexError):
            raise error_of(field, path, error) from error
        raise UsageError(f"{field}: {error}") from error
    except Exception as error:  # whatever the user's code raises
        raise error_of(field, path, error) from error
    return _plain(values, f"{field}: what its get_config returns")


def _plain(values: Any, what: str) -> dict[str, Any]:
    """Return settings as dictionaries that no one else holds; errors call them ``what``."""
    if not is_mapping(values):
        raise UsageError(f"{what} is of type {type(values).__name__}, which holds no settings")
    return {
        str(name): _plain(value, what) if is_mapping(value) else value
        for name, value in values.items()
    }


def _change(values: dict[str, Any], name: str, value: Any) -> None:
    """Change the setting of a dotted name."""
    *groups, last = name.split(".")
    for position, group in enumerate(groups, start=1):
        below = values.setdefault(group, {})  # refused when they are read, if there is no such
        if not isinstance(below, dict):
            setting = ".".join(groups[:position])
            raise UsageError(f"--config.{name}: {setting} is one setting, with none below it")
        values = below
    values[last] = value


def _kind_of(name: str) -> Any:
    """Return the type of a setting; None of one that the schema does not have."""
    kind: Any = Config
    for part in name.split("."):
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        kind = next((field.type for field in fields if field.name == part), None)
    return kind


def number(text: str) -> float:
    """Read a number, or a fraction such as 8/255; other texts are a ValueError."""
    above, slash, below = text.partition("/")
    if slash and not float(below):
        raise ValueError(f"{text!r}: must not divide by 0")
    return float(above) / float(below) if slash else float(text)


def _value(text: str, kind: Any, given: str) -> Any:
    """Read a text as a value of a type, or as any literal or word where there is none."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise UsageError(f"{given}: must be True or False")
        return _WORDS[text.lower()]
    if kind in (int, float):
        try:
            return int(text) if kind is int else number(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UsageError(f"{given}: must be {what}") from None
    if kind is None and text in ("true", "false"):  # of an option of somebody's own
        return text == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text
    alone = kind in (tuple[int, ...], tuple[float, ...]) and type(value) in (int, float)
    return (value,) if alone else value
