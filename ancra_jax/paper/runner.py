"""Runs the commands of a table's rows: what is finished is skipped, what fails holds nobody up."""

import contextlib
import fcntl
import json
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import IO

from ancra_jax.errors import UsageError
from ancra_jax.ops.files import read_json_lines
from ancra_jax.paper.plan import Command, Run

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A signal ended the work; the same command continues it."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command continues")
        self.exit_status = 128 + number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let signals raise ``Stopped``; what runs then has come to its end before."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    previous = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_all(runs: Sequence[Run]) -> dict[str, str]:
    """Run all, and return what went wrong by the title of the run; no failure stops the others."""
    failures = {}
    for number, run in enumerate(runs, start=1):
        heading = f"== {number}/{len(runs)} {run.title}"
        print(heading if unfinished(run) else f"{heading}: finished already", flush=True)
        if problem := run_one(run):
            failures[run.title] = problem
            print(f"{heading}: failed: {problem}", flush=True)
    return failures


def run_one(run: Run) -> str:
    """Run the commands of a run that are not finished yet; return what went wrong, or ''."""
    if not unfinished(run):
        return ""
    lock = take_lock(run.workdir)
    if lock is None:
        return "another process works on it"
    with lock:
        for command in unfinished(run):
            started = time.monotonic()
            if status := call(command, lock):
                how = f"exit status {status}" if status > 0 else f"signal {-status}"
                return f"{command[2]} ended with {how}"
            seconds = round(time.monotonic() - started, 1)
            with open(_record(run), "a") as file:
                file.write(json.dumps({"command": _identity(command), "seconds": seconds}) + "\n")
    return ""


def call(command: Command, lock: IO | None = None) -> int:
    """Run a command and return its exit status.

    It holds the lock for as long as it lives, even should this process be killed.
    """
    print(f"$ {shlex.join(command)}", flush=True)
    # In a process group of its own: Ctrl-C reaches it through this process, and once.
    files = [lock.fileno()] if lock else []
    with subprocess.Popen(command, process_group=0, pass_fds=files) as child:
        try:
            return child.wait()
        except Stopped:
            child.terminate()
            raise


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
