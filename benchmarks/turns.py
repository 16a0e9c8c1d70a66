"""Several libraries on one workload, in turns: on a machine that others use too, only ratios of
times measured side by side say anything."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

Turn = dict[str, float]
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # two libraries share a GPU's memory


class WorkerError(RuntimeError):
    """A worker ended, or computed something else than the others."""


class Worker:
    """A process with one library's workload, see ``benchmarks.worker``."""

    def __init__(self, request: dict[str, Any]):
        """Starts the process, which builds the workload and runs it once."""
        self._name = request["library"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )
        self.facts = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """Sends a command and returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self):
        """Ends the process."""
        self._process.communicate()

    def _answer(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self._name}: ended with status {self._process.wait()}")
        return json.loads(line)


def compare(
    row: str,
    config: dict[str, Any],
    libraries: Sequence[str],
    *,
    turns: int,
    turn_seconds: float,
    tolerance: float,
) -> dict[str, Any]:
    """Measures one row.

    Args:
      row: see ``benchmarks.jax_workloads.create``.
      config: a configuration as plain data.
      libraries: of ``benchmarks.worker.LIBRARIES``, ``'jax'`` first.
      turns: how often every library's turn comes; the order is reversed from one to the next.
      turn_seconds: a turn is as many runs of the workload as take JAX about so long.
      tolerance: by how much another library's first loss may differ, relative to JAX's.

    Returns:
      What each library measured, and the other libraries' times divided by JAX's.

    Raises:
      WorkerError: a process ended, or its loss is another one.
    """
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        workers = {}
        for library in libraries:
            request = {"library": library, "row": row, "config": config}
            worker = Worker(request | {"shared": str(Path(directory) / "shared.npz")})
            stack.callback(worker.close)
            workers[library] = worker
            _check_loss(library, worker.facts["loss"], workers["jax"].facts["loss"], tolerance)
        runs = math.ceil(turn_seconds / workers["jax"].ask("run 1")["seconds"])
        measured: dict[str, list[Turn]] = {library: [] for library in libraries}
        for turn in range(turns):
            for library in libraries if turn % 2 == 0 else reversed(libraries):
                measured[library].append(workers[library].ask(f"run {runs}"))
        results = {
            library: worker.facts | worker.ask("peak_mib") | _summary(measured[library])
            for library, worker in workers.items()
        }
    ratios = {
        library: _ratios(measured[library], measured["jax"])
        for library in libraries
        if library != "jax"
    }
    compared: dict[str, Any] = {"row": row, "libraries": results, "times_of_jax": ratios}
    flags = {library: worker.facts["robust"] for library, worker in workers.items()}
    if flags["jax"] is not None:
        compared["flags_that_differ"] = {
            library: sum(a != b for a, b in zip(flags["jax"], found, strict=True))
            for library, found in flags.items()
        }
    return compared


def _check_loss(library, loss, expected, tolerance):
    if loss is None:  # it draws its own random numbers
        return
    if expected is not None and not abs(loss - expected) <= tolerance * abs(expected):
        raise WorkerError(
            f"{library}: its first loss is {loss}, JAX's {expected}: not the same computation"
        )


def _summary(measured: list[Turn]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(turn["seconds"] for turn in measured),
        "fastest_seconds": min(turn["seconds"] for turn in measured),
        "turns": measured,
    }


def _ratios(measured: list[Turn], jax: list[Turn]) -> dict[str, dict[str, float]]:
    """Of wall time and of the processor's, turn by turn."""
    ratios = {}
    for name in ("seconds", "processor_seconds"):
        values = [a[name] / b[name] for a, b in zip(measured, jax, strict=True)]
        ratios[name] = {
            "median": statistics.median(values),
            "smallest": min(values),
            "largest": max(values),
        }
    return ratios
