"""Flags of a command that is a function: one for each parameter, with its docstring's text."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from absl import flags

from ancra_jax.cli.settings import number
from ancra_jax.errors import Problems


class _Number(flags.FloatParser):
    def convert(self, argument: Any) -> float:
        return number(str(argument))


def help_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring of a function says of each parameter, on one line."""
    texts = re.findall(r"^ {6}(\w+): (.*(?:\n {8}.*)*)", function.__doc__ or "", re.MULTILINE)
    return {parameter: " ".join(text.split()) for parameter, text in texts}


def define(function: Callable[..., Any], *, lists: tuple[str, ...] = ()) -> None:
    """Define the flags; parameters in ``lists`` are separated by commas."""
    about = help_texts(function)
    for parameter in inspect.signature(function).parameters.values():
        default = None if parameter.default is parameter.empty else parameter.default
        define: Any = flags.DEFINE_string
        if parameter.name in lists:
            define = flags.DEFINE_list
        elif isinstance(default, bool):
            define = flags.DEFINE_bool
        elif isinstance(default, int):
            define = flags.DEFINE_integer
        elif isinstance(default, float):
            define = partial(flags.DEFINE, _Number())
        define(parameter.name, default, about[parameter.name])


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
