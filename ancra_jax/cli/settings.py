"""The configuration that ``--config=FILE.py:METHOD`` and ``--config.NAME=VALUE`` make."""

import ast
import dataclasses
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ancra_jax.config import Config, local_path, read
from ancra_jax.errors import Problems, UsageError

Check = Callable[[Config, Problems], object]
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
      arguments: ``FILE.py:METHOD``, and settings as ``.NAME=VALUE``.
      check: what else may be wrong with it; is not called where it cannot be read at all.

    Raises:
      UsageError: with everything that is wrong.
    """
    files = [argument for argument in arguments if not _SETTING.match(argument)]
    if len(files) != 1:
        wrong = "is missing, for instance --config=configs/digits.py:trades"
        raise UsageError(f"--config {f'is given {len(files)} times' if files else wrong}")
    values = _load(files[0])
    problems = Problems()
    for argument in arguments:
        if _SETTING.match(argument):
            with problems.collect():
                _change(values, *argument[1:].split("=", 1))
    config = read(values, "--config", problems)
    if config is not None:
        check(config, problems)
    problems.raise_all()
    assert config is not None
    return config


def import_file(path: Path, name: str) -> Any:
    """Import a file, under ``name``, as `user_code` says its errors."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


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
    path = Path(local_path(name, "--config", directory=False)).absolute()
    if not path.is_file():
        raise UsageError(f"{field}: there is no file {path}")
    if path.suffix != ".py":
        raise UsageError(f"{field}: must be a Python file with get_config, FILE.py:METHOD")
    sys.path.append(str(path.parents[1]))
    try:
        get_config = getattr(import_file(path, "config_file"), "get_config", None)
        if not callable(get_config):
            raise UsageError(f"{field}: has no function get_config")
        takes = inspect.signature(get_config).parameters
        if colon and not takes:
            raise UsageError(f"{field}: its get_config takes no method; leave {colon}{method} out")
        values = get_config(method) if colon else get_config()
    except UsageError:
        raise
    except LookupError as error:  # such as an unknown method, in words of the file's own
        if type(error) in (KeyError, IndexError):
            raise error_of(field, path, error) from error
        raise UsageError(f"{field}: {error}") from error
    except Exception as error:  # whatever the user's code raises
        raise error_of(field, path, error) from error
    if isinstance(values, ConfigDict):
        return values.to_dict()
    if isinstance(values, Mapping):
        return dict(values)
    raise UsageError(f"{field}: its get_config returns {type(values).__name__}, no settings")


def _change(values: dict[str, Any], name: str, text: str) -> None:
    """Change the setting of a dotted name to what a text says."""
    *groups, last = name.split(".")
    kind = _kind_of(name)
    for position, group in enumerate(groups, start=1):
        if group not in values and kind is None:
            values[group] = {}  # is refused when the settings are read, where it is not allowed
        below = values.setdefault(group, {})
        if not isinstance(below, dict):
            setting = ".".join(groups[:position])
            raise UsageError(f"--config.{name}: {setting} is one setting, with none below it")
        values = below
    values[last] = _value(text, kind, f"--config.{name}={text}")


def _kind_of(name: str) -> Any:
    """Return the type of a setting; None of one that the schema does not have."""
    kind: Any = Config
    for part in name.split("."):
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        kind = next((field.type for field in fields if field.name == part), None)
    return kind


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
            return kind(text)
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
