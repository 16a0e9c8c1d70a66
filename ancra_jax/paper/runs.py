"""The runs of a table, one for each row and seed: their commands, and how these are run.

What is finished is skipped, and a command that fails ends its own run alone.
"""

import contextlib
import fcntl
import fnmatch
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from ancra_jax.cli import read_settings
from ancra_jax.config import Config, path_list
from ancra_jax.data import check_count
from ancra_jax.errors import Problems, UsageError
from ancra_jax.ops.files import AnyPath, append_json_line, as_path, read_json_lines
from ancra_jax.paper.claims import FIGURES, STUDIES, TABLES, TableRow
from ancra_jax.run import build

Command = tuple[str, ...]

TINY_EXAMPLES = 16
_ADAPTIVE = ("worst_case", "adaptive", "all")  # suites with attacks made for a defence


@dataclass(frozen=True)
class Run:
    """A row trained with one seed, and the commands that do it in their order."""

    row: TableRow
    seed: int
    workdir: str
    commands: tuple[Command, ...]

    @property
    def title(self) -> str:
        """What names the run in a sentence."""
        return f"{self.row.name}, seed {self.seed}"

    @property
    def record(self) -> AnyPath:
        """The file with the commands that have come to a good end."""
        return as_path(self.workdir) / "commands.jsonl"

    @property
    def unfinished(self) -> list[Command]:
        """The other commands."""
        finished = {record["command"] for record in read_json_lines(self.record)}
        return [command for command in self.commands if _identity(command) not in finished]


def runs_of(options: Namespace) -> list[Run]:
    """Return the runs of a table, in its order; every pattern must fit a row.

    Those of a study come seed by seed: wherever it is stopped, its rows can be paired.
    """
    rows = {**TABLES, **STUDIES, **FIGURES}[options.table].rows
    for pattern in options.rows:
        if not any(_fits(row, pattern) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise UsageError(f"--rows: {pattern!r} fits no row of the table; there are {names}")
    chosen = [row for row in rows if any(_fits(row, one) for one in options.rows or ["*"])]
    runs = [_run(row, seed, options) for row in chosen for seed in options.seeds]
    if options.table in STUDIES:
        runs.sort(key=lambda run: options.seeds.index(run.seed))
    return runs


def check(runs: Sequence[Run], options: Namespace) -> None:
    """Check the configurations of runs and the numbers of examples; all errors are reported."""
    problems = Problems()
    configs: list[Config] = []
    settings = {
        tuple(
            one[len("--config") :].removeprefix("=")
            for one in run.commands[0]
            if one.startswith("--config")
        )
        for run in runs
    }

    def check_run(config: Config, problems: Problems) -> None:
        build.check(config, problems)
        with problems.collect():
            counts = build.inspect_dataset(config.data, problems)
            if counts and options.num_examples:
                check_count("--num_examples", options.num_examples, counts[1])
        configs.append(config)

    for arguments in sorted(settings):
        with problems.collect():
            read_settings(arguments, check_run)
    problems.raise_all()
    if options.table in FIGURES and not options.dry_run:  # which downloads nothing
        from ancra_jax.paper import figures  # with all that draws

        figures.check(configs[0].data, options.class_name, options.map)


def _fits(row: TableRow, pattern: str) -> bool:
    """Return whether a pattern names a row; ``'trades'`` is that method on every data set."""
    return bool(fnmatch.filter((row.name, row.name.partition("/")[2]), pattern))


def _run(row: TableRow, seed: int, options: Namespace) -> Run:
    workdir = str(as_path(options.output) / f"{row.name}-seed{seed}")
    tiny = options.scale == "tiny"
    train = _python(
        "train",
        f"--config=configs/{row.data}.py:{row.method}{',scale=tiny' if tiny else ''}",
        f"--config.seed={seed}",
        *([f"--config.data.data_dir={options.data_dir}"] if options.data_dir else []),
        *options.overrides,
        f"--workdir={workdir}",
    )
    suites = (options.suite,) if options.suite else row.suites
    if options.released and "released" not in suites:
        suites = (*suites, "released")
    budget = "quick" if tiny else row.budget
    num_examples = options.num_examples or (TINY_EXAMPLES if tiny else 0)
    evaluate = [
        _python(
            "evaluate",
            f"--workdir={workdir}",
            f"--checkpoint={checkpoint}",
            f"--suite={suite}",
            *([f"--adaptive_budget={budget}"] if budget and suite in _ADAPTIVE else []),
            *([f"--num_examples={num_examples}"] if num_examples else []),
        )
        for checkpoint in row.claims
        for suite in suites
    ]
    return Run(row, seed, workdir, (train, *evaluate))


def report_command(runs: Sequence[Run], options: Namespace) -> Command:
    """Return the command that reports on runs."""
    workdirs = path_list([run.workdir for run in runs])
    return _python("report", f"--workdirs={workdirs}", f"--output={options.report}")


def _python(command: str, *arguments: str) -> Command:
    python = sys.executable
    if pathlib.Path(python).is_relative_to(pathlib.Path.cwd()):
        python = os.path.relpath(python)
    return (python, "-m", f"ancra_jax.{command}", *arguments)


def _identity(command: Command) -> str:
    """Return the command without the Python that runs it."""
    return shlex.join(command[1:])


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let signals exit with the status 128 + signal, once what runs has come to its end."""
    received = []

    def stop(number: int, frame: object) -> None:
        received.append(signal.Signals(number))
        raise SystemExit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for one in received:
            print(f"stopped by {one.name}; the same command continues")


def run_all(runs: Sequence[Run]) -> dict[str, str]:
    """Run all, and return what went wrong by the title of the run; no failure stops the others."""
    failures = {}
    for number, run in enumerate(runs, start=1):
        heading = f"== {number}/{len(runs)} {run.title}"
        if not run.unfinished:
            print(f"{heading}: finished already", flush=True)
            continue
        print(heading, flush=True)
        if problem := run_one(run):
            failures[run.title] = problem
            print(f"{heading}: failed: {problem}", flush=True)
    return failures


def run_one(run: Run) -> str:
    """Run the commands of a run that are not finished yet; return what went wrong, or ''."""
    path = as_path(run.workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: Any = contextlib.nullcontext()  # a bucket has none, as its commands say
    if isinstance(path, pathlib.Path):
        lock = open(path.with_name(f".{path.name}.lock"), "a")  # noqa: SIM115  closed below
    with lock as lock:
        try:
            if lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "another process works on it"
        for command in run.unfinished:
            started = time.monotonic()
            if status := call(command, lock):
                how = f"exit status {status}" if status > 0 else f"signal {-status}"
                return f"{command[2]} ended with {how}"
            seconds = round(time.monotonic() - started, 1)
            append_json_line(run.record, {"command": _identity(command), "seconds": seconds})
    return ""


def call(command: Command, lock: IO | None = None) -> int:
    """Run a command and return its exit status.

    The command holds the lock of its run as long as it lives, even if this process is killed.
    """
    print(f"$ {shlex.join(command)}", flush=True)
    # In a process group of its own: Ctrl-C reaches it through this process, and once.
    files = [lock.fileno()] if lock else []
    with subprocess.Popen(command, process_group=0, pass_fds=files) as child:
        try:
            return child.wait()
        except SystemExit:
            child.terminate()
            raise
