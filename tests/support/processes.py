"""Commands in this process, which saves seconds, and Python code in processes of their own."""

import contextlib
import io
import multiprocessing
import pathlib
import socket
import subprocess
import sys
import tempfile
from typing import NamedTuple
from unittest import mock

import jax
from absl import logging

from ancra_jax import cli
from tests.support import ENVIRONMENT, ROOT, commands

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.conftest", "tests.support.commands"])


class Finished(NamedTuple):
    """What a process would have left: its exit status and what it printed."""

    status: int | None
    output: str
    error: str


def run_command(package, *arguments) -> Finished:
    """Runs the command of ``ancra_jax.train``, ``.evaluate`` or ``.report`` in this process.

    The import path and the level of logging are as before afterwards.
    """
    jax.devices()  # a command may choose the number of devices where JAX has not started
    level = logging.get_verbosity()
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
        logging.set_verbosity(level)
    raise AssertionError("the command did not exit")


def run_python(code: str, *arguments: str, **environment: str | None) -> str:
    """Returns what the code printed; fails with what it wrote to stderr.

    Variables of the environment are set, or not there if they are None.
    """
    variables = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"} | environment
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


def run_on_devices(devices: int, code: str, *arguments: str) -> list[str]:
    """Returns the lines that the code printed in a process with so many CPU devices.

    It is forked off one that has imported the library.
    """
    with tempfile.NamedTemporaryFile("r") as output:
        what = (code, arguments, devices, output.name)
        process = FORKS.Process(target=commands.execute, args=what, daemon=True)
        process.start()
        process.join(1200)
        printed = output.read()
    assert process.exitcode == 0, printed[-4000:]
    return printed.splitlines()


def start_several(directory, command, count, *arguments, devices=1, files=None):
    """Starts processes that run a command together; returns them without waiting.

    What they print goes to ``directory``, and they run in ``directory/here``. See `commands.run`.
    """
    together = []
    if count > 1:
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            address = f"localhost:{listener.getsockname()[1]}"
        together = ["--distributed", f"--coordinator_address={address}", f"--num_processes={count}"]
    (directory / "here").mkdir(parents=True, exist_ok=True)
    processes = []
    for number in range(count):
        given = [*arguments, *together, *(f"--process_id={number}" for _ in together[:1])]
        output = str(directory / f"{number}.txt")
        what = (command, given, devices, directory / "here", output, files)
        processes.append(FORKS.Process(target=commands.run, args=what, name=output, daemon=True))
        processes[-1].start()
    return processes


def ends_of(processes) -> tuple[list[int], list[str]]:
    """The exit statuses of all, and the last line of each."""
    for process in processes:
        process.join(600)
    outputs = [pathlib.Path(process.name).read_text().splitlines() for process in processes]
    return [one.exitcode for one in processes], [lines[-1] if lines else "" for lines in outputs]
