"""Runs the commands of a table's rows: what is finished is skipped, what fails holds nobody up."""

import fcntl
import json
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import IO

from ancra_jax.errors import UsageError
from ancra_jax.paper.plan import Command, Run
from ancra_jax.run.files import read_json_lines

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A signal ended the work; the same command continues it."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command continues")
        self.exit_status = 128 + number


class Runner:
    """Runs commands one at a time and stops the one that runs when it is told to stop.

    Use as a context manager.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> "Runner":
        self._previous = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run_all(self, runs: Sequence[Run]) -> dict[str, str]:
        """Run all; a failure does not keep the others from running.

        Returns:
          What went wrong, by the title of the run.

        Raises:
          Stopped: by a signal.
          UsageError: the output directory cannot be written.
        """
        failures = {}
        for number, run in enumerate(runs, start=1):
            heading = f"== {number}/{len(runs)} {run.title}"
            if not unfinished(run):
                print(f"{heading}: finished already", flush=True)
                continue
            print(heading, flush=True)
            if (problem := self.run(run)) is not None:
                failures[run.title] = problem
                print(f"{heading}: failed: {problem}", flush=True)
        return failures

    def run(self, run: Run) -> str | None:
        """Run the commands of a run that are not finished yet.

        Returns:
          What went wrong, or None.
        """
        lock = take_lock(run.workdir)
        if lock is None:
            return "another process works on it"
        with lock:
            for command in unfinished(run):
                started = time.monotonic()
                if status := self.call(command, lock):
                    how = f"exit status {status}" if status > 0 else f"signal {-status}"
                    return f"{command[2]} ended with {how}"
                seconds = round(time.monotonic() - started, 1)
                record = {"command": _identity(command), "seconds": seconds}
                with open(_record(run), "a") as file:
                    file.write(json.dumps(record) + "\n")
        return None

    def call(self, command: Command, lock: IO | None = None) -> int:
        """Run a command and return its exit status.

        Args:
          command: the program and its arguments.
          lock: the command holds it for as long as it lives, even should this process be killed.

        Raises:
          Stopped: by a signal, after the command has come to its end.
        """
        status = 0
        if self._signal is None:
            print(f"$ {shlex.join(command)}", flush=True)
            # In a process group of its own: Ctrl-C reaches it through this process, and once.
            files = [lock.fileno()] if lock else []
            self._child = subprocess.Popen(command, process_group=0, pass_fds=files)
            if self._signal:  # it came just before there was a child
                self._child.terminate()
            status = self._child.wait()
            self._child = None
        if self._signal:
            raise Stopped(self._signal)
        return status

    def _stop(self, number: int, frame: object) -> None:
        del frame
        self._signal = number
        if self._child:
            self._child.terminate()


def unfinished(run: Run) -> list[Command]:
    """Return the commands of a run that have not come to a good end yet."""
    finished = {record["command"] for record in read_json_lines(_record(run))}
    return [command for command in run.commands if _identity(command) not in finished]


def _record(run: Run) -> pathlib.Path:
    return pathlib.Path(run.workdir) / "commands.jsonl"


def _identity(command: Command) -> str:
    """Return the command without the Python that runs it."""
    return shlex.join(command[1:])


def take_lock(workdir: str) -> IO | None:
    """Lock a work directory until the last process with the lock ends; None if it is taken."""
    path = pathlib.Path(workdir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_name(f".{path.name}.lock"), "a")  # noqa: SIM115  the caller closes it
    except OSError as error:
        raise UsageError(f"--output: {path.parent} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
