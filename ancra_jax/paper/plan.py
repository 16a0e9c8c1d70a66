"""From a table to the commands that compute it: one run for each of its rows and seeds."""

import fnmatch
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ancra_jax.errors import UsageError
from ancra_jax.paper.claims import TABLES, TableRow

Command = tuple[str, ...]

TINY_EXAMPLES = 16


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    table: str  # a name of ``TABLES``
    scale: str  # 'full', or 'tiny': a rehearsal
    dry_run: bool  # print the commands only
    output: str  # directory of all runs and reports; tables share the runs they have in common
    data_dir: str  # of the data sets; empty for their default
    seeds: tuple[int, ...]  # of the training, a run each
    rows: tuple[str, ...]  # patterns of the names of rows, or of their methods; empty for all
    suite: str  # of the evaluation, in place of the rows' own; empty for those
    num_examples: int  # evaluated, the first of the test split; 0 for all
    overrides: tuple[str, ...]  # further flags of the training, ``--config.x=y``

    @property
    def report(self) -> pathlib.Path:
        """Where the report of the table goes."""
        return pathlib.Path(self.output) / self.table


@dataclass(frozen=True)
class Run:
    """A row trained with one seed, and the commands that do it in their order."""

    row: TableRow
    seed: int
    workdir: str
    commands: tuple[Command, ...]

    @property
    def title(self) -> str:
        """Names the run in a sentence."""
        return f"{self.row.name}, seed {self.seed}"


def runs_of(options: Options) -> list[Run]:
    """Return the runs of a table, in its order; every pattern must fit a row."""
    rows = TABLES[options.table].rows
    for pattern in options.rows:
        if not any(_fits(row, pattern) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise UsageError(f"--rows: {pattern!r} fits no row of the table; there are {names}")
    chosen = [row for row in rows if any(_fits(row, one) for one in options.rows or ["*"])]
    return [_run(row, seed, options) for row in chosen for seed in options.seeds]


def report_command(workdirs: Sequence[str], options: Options) -> Command:
    """Return the command that reports on runs."""
    return _python("report", f"--workdirs={','.join(workdirs)}", f"--output={options.report}")


def _fits(row: TableRow, pattern: str) -> bool:
    """Return whether a pattern names a row; ``'trades'`` is that method on every data set."""
    return bool(fnmatch.filter((row.name, row.name.partition("/")[2]), pattern))


def _run(row: TableRow, seed: int, options: Options) -> Run:
    workdir = str(pathlib.Path(options.output) / f"{row.name}-seed{seed}")
    tiny = options.scale == "tiny"
    train = _python(
        "train",
        f"--config=configs/{row.data}.py:{row.method}{',scale=tiny' if tiny else ''}",
        f"--config.seed={seed}",
        *([f"--config.data.data_dir={options.data_dir}"] if options.data_dir else []),
        *options.overrides,
        f"--workdir={workdir}",
    )
    num_examples = options.num_examples or (TINY_EXAMPLES if tiny else 0)
    evaluate = [
        _python(
            "evaluate",
            f"--workdir={workdir}",
            f"--checkpoint={checkpoint}",
            f"--suite={suite}",
            *(["--adaptive_budget=quick"] if tiny and suite in ("adaptive", "all") else []),
            *([f"--num_examples={num_examples}"] if num_examples else []),
        )
        for checkpoint in row.claims
        for suite in ([options.suite] if options.suite else row.suites)
    ]
    return Run(row, seed, workdir, (train, *evaluate))


def _python(command: str, *arguments: str) -> Command:
    python = sys.executable
    if pathlib.Path(python).is_relative_to(pathlib.Path.cwd()):
        python = os.path.relpath(python)
    return (python, "-m", f"ancra_jax.{command}", *arguments)
