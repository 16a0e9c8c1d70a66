"""Commands as a person at the keyboard runs them, without the seconds that a new process takes."""

import contextlib
import io
import sys
from typing import NamedTuple
from unittest import mock

import jax
from absl import flags, logging

from ancra_jax import cli
from tests.support import ROOT


class Finished(NamedTuple):
    """What a process would have left: its exit status and what it printed."""

    status: int | None
    output: str
    error: str


def run_command(package, *arguments) -> Finished:
    """Runs the command of ``ancra_jax.train``, ``.evaluate`` or ``.report`` in this process.

    Flags, the import path and the level of logging are as before afterwards.
    """
    jax.devices()  # a command may choose the number of devices where JAX has not started
    flags_before, level = set(flags.FLAGS), logging.get_verbosity()
    output, error = io.StringIO(), io.StringIO()
    argv = [package.__name__, *map(str, arguments)]
    try:
        with (
            contextlib.chdir(ROOT),
            mock.patch.object(sys, "argv", argv),
            mock.patch.object(sys, "path", [*sys.path]),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(error),
        ):
            cli.run(package.main, package.define_flags)
    except SystemExit as finished:
        return Finished(finished.code, output.getvalue(), error.getvalue())
    finally:
        for name in set(flags.FLAGS) - flags_before:
            delattr(flags.FLAGS, name)
        logging.set_verbosity(level)
    raise AssertionError("the command did not exit")
