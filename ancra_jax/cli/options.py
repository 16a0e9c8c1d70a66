"""Flags of a command that is a function: one for each parameter, with its docstring's text."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

from absl import flags

from ancra_jax.cli.settings import number
from ancra_jax.errors import Problems


class _Number(flags.FloatParser):
    def convert(self, argument: Any) -> float:
        return number(str(argument))


def help_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring of a function says of each parameter, on one line."""
    about = inspect.getdoc(function) or ""  # without the indentation, which Python 3.13 takes away
    texts = re.findall(r"^ {2}(\w+): (.*(?:\n {4}.*)*)", about, re.MULTILINE)
    return {parameter: " ".join(text.split()) for parameter, text in texts}


def define(
    function: Callable[..., Any], choices: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Define the flags: of sequences separated by commas, of numbers at least 0.

    Args:
      function: its parameters are annotated, and those that may be left out have defaults.
      choices: the words that some parameters allow.
    """
    about, choices = help_texts(function), choices or {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = None if parameter.default is parameter.empty else parameter.default
        what = name, default, about.get(name, "")
        if name in choices:
            flags.DEFINE_enum(name, default, choices[name], what[2])
        elif _is_sequence(parameter.annotation):
            flags.DEFINE_list(*what)
        elif isinstance(default, bool):
            flags.DEFINE_bool(*what)
        elif isinstance(default, int):
            flags.DEFINE_integer(*what, lower_bound=0)
        elif isinstance(default, float):
            flags.DEFINE(_Number(lower_bound=0.0), *what)
        else:
            flags.DEFINE_string(*what)


def _is_sequence(annotation: Any) -> bool:
    """Return whether it is Sequence[...], or a union with one."""
    return any(get_origin(one) is Sequence for one in (annotation, *get_args(annotation)))


def read(function: Callable[..., Any], arguments: flags.FlagValues) -> dict[str, Any]:
    """Return what the flags say, by parameter.

    Raises:
      UsageError: some without a default are not given.
    """
    problems = Problems()
    options = {}
    for parameter in inspect.signature(function).parameters.values():
        options[parameter.name] = arguments[parameter.name].value
        if parameter.default is parameter.empty and not options[parameter.name]:
            about = arguments[parameter.name].help.rstrip(".")
            problems.add(f"--{parameter.name} is missing: {about}")
    problems.raise_all()
    return options
