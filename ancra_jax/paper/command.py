"""Computes one of the paper's tables: ``ancra paper TABLE``, or ``launch/reproduce.sh TABLE``.

Trains and evaluates every row, reports, and sets the paper's claims beside what was measured.
Interrupted, the same command continues; finished rows are skipped, a row that fails is named at the
end.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ancra_jax import cli
from ancra_jax.config import directory_path, listable_path, path_text
from ancra_jax.errors import renamed
from ancra_jax.evaluate import SUITES
from ancra_jax.ops.files import as_path
from ancra_jax.paper import runs as runs_lib
from ancra_jax.paper.claims import FIGURES, MAPS, STUDIES, TABLES
from ancra_jax.paper.measured import REHEARSAL, WITHOUT_CLAIM, claim_lines, notes_of, write_claims
from ancra_jax.paper.runs import TINY_EXAMPLES
from ancra_jax.paper.study import write_study
from ancra_jax.registry import did_you_mean

FIGURE_EXAMPLES = 500  # of a rehearsal: some of every class
_MOST_SEEDS = 1000  # in a row
OUTPUTS = {"full": "runs/reproduce", "tiny": "runs/reproduce-tiny"}
# What is set by a flag of this command, and names or places the runs.
_RESERVED = {"--config.seed": "--seeds", "--config.data.data_dir": "--data_dir"}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        cli.fail(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exit with one line if it cannot be understood.

    Besides the flags, the result has ``overrides``, those of the training, and ``report``, the
    directory of the table's report. A path that cannot be used raises a `UsageError`.
    """
    every = {**TABLES, **STUDIES, **FIGURES}
    tables = "\n".join(f"  {name:14} {table.title}" for name, table in every.items())
    parser = _Parser(
        prog="ancra paper",
        usage="%(prog)s TABLE|FIGURE [--scale=tiny] [--dry_run] [options] [--config.x=y ...]",
        description=__doc__,
        epilog=f"tables and figures:\n{tables}\n\n--config.x=y is passed on to the training of "
        "every row. See docs/reproduce.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("table", metavar="TABLE", choices=every, help="which table or figure; see below")
    scale = "tiny: a rehearsal for a CPU, narrow networks and few epochs; no reproduction"
    add("--scale", choices=tuple(OUTPUTS), default="full", help=scale)
    add("--dry_run", action="store_true", help="print the commands and run nothing")
    add("--data_dir", default="", help="of the data sets; see docs/data.md")
    output = (
        "directory of all runs and reports; tables share the runs they have in common "
        f"(default: {OUTPUTS['full']}, tiny: {OUTPUTS['tiny']})"
    )
    add("--output", help=output)
    add("--seeds", type=_seeds, default=(0,), help="of the training, N[-N][,...] (default: 0)")
    rows = "only these, NAME[,NAME...], for instance trades_ancra or 'cifar10/*'"
    add("--rows", type=lambda text: tuple(text.split(",")), default=(), help=rows)
    add("--suite", choices=SUITES, default="", help="of attacks (default: the row's own)")
    released = "attack also as the authors' code does (evaluate --suite=released)"
    add("--released", action="store_true", help=released)
    examples = f"evaluate the first N test examples (default 0: all, tiny: {TINY_EXAMPLES})"
    add("--num_examples", type=_count, default=0, help=examples)
    figure = parser.add_argument_group("figures").add_argument
    directories = "of runs that there are, DIR[,DIR...], instead of the paper's, which are trained"
    figure("--workdirs", type=lambda text: tuple(text.split(",")), default=(), help=directories)
    figure("--class", dest="class_name", default="0", help="number, name or all (default: 0)")
    figure("--checkpoint", choices=("best", "last"), default="best", help="(default: best)")
    figure("--map", choices=MAPS, default="", help="also a two-dimensional map of the features")
    figure("--force", action="store_true", help="measure again what is there")
    options, overrides = parser.parse_known_args(arguments)
    for given, why in _of_no_use(options):
        for name in given.split():
            if getattr(options, name) != parser.get_default(name):
                cli.fail(f"--{name.removesuffix('_name')}: {why}")
    if options.workdirs and overrides:
        cli.fail(f"{overrides[0]}: --workdirs are runs that there are; leave it out")
    for argument in overrides:
        name, equals, _ = argument.partition("=")
        if name in _RESERVED:
            cli.fail(f"{name}: use {_RESERVED[name]}")
        if not name.startswith("--config."):
            hint = did_you_mean(name, parser._option_string_actions)
            cli.fail(f"unknown argument {argument!r}; {hint}--help lists what there is")
        if not equals:
            cli.fail(f"{argument}: needs a value, {argument}=VALUE")
    options.output = listable_path(options.output or OUTPUTS[options.scale], "--output")
    options.data_dir = path_text(options.data_dir, "--data_dir", remote=True)
    options.workdirs = [directory_path(one, "--workdirs") for one in options.workdirs]
    options.overrides = overrides
    if options.table in FIGURES and options.scale == "tiny":
        options.num_examples = options.num_examples or FIGURE_EXAMPLES
    options.report = as_path(options.output) / ("" if options.workdirs else options.table)
    return options


def _of_no_use(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield options that would change nothing, by their names in Python, and why."""
    if options.table not in FIGURES:
        figures = ", ".join(FIGURES)
        yield "workdirs class_name checkpoint map force", f"is for the figures {figures}"
    else:
        yield "suite released", "is for tables; leave it out"
    if options.table == "heads":
        yield "class_name map force", "is for the figures of features; leave it out"
    if options.table == "coefficients":
        yield "suite released num_examples", "nothing is attacked; leave it out"
    if options.workdirs:
        yield "seeds rows dry_run", "--workdirs are runs that there are; leave it out"


def _seeds(text: str) -> tuple[int, ...]:
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = _count(first), _count(last if dash else first)
        if dash and low >= high:
            raise argparse.ArgumentTypeError(f"{part!r} does not go up, as 0-15 does")
        if high - low >= _MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{part!r} has more than {_MOST_SEEDS} seeds")
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} has a seed twice")
    return tuple(seeds)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


@cli.errors_in_one_line()
@renamed({re.escape(setting): flag for setting, flag in _RESERVED.items()})
def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = parse(arguments)
    if options.workdirs:
        _draw(options, options.workdirs)
        return 0
    runs = runs_lib.runs_of(options)
    runs_lib.check(runs, options)
    if options.dry_run:
        print("\n".join(_plan(runs, options)))
        return 0
    with runs_lib.stopped_by_signals():
        return _reproduce(runs, options)


def _plan(runs: Sequence[runs_lib.Run], options: argparse.Namespace) -> Iterator[str]:
    """Yield what the paper claims of every row, and its commands."""
    table = TABLES.get(options.table)  # none of a figure
    if table:
        yield f"# {table.title}"
        yield from (f"# {note}" for note in notes_of(table))
    before = table is not None  # the rows without a claim, which come last
    for run in runs:
        claims = claim_lines(table, run.row) if table else []
        if before and not claims:
            yield f"\n# {WITHOUT_CLAIM}"
        before = bool(claims)
        yield f"\n# {run.row.title}: {run.title}"
        yield from (f"#   {claim}" for claim in claims)
        yield from map(shlex.join, run.commands)
    if options.table not in FIGURES:
        yield "\n# report"
        yield shlex.join(runs_lib.report_command(runs, options))


def _draw(options: argparse.Namespace, workdirs: Sequence[str]) -> None:
    """Draw a figure of runs; what that needs is imported now."""
    from ancra_jax.cli.backend import keep_compiled_programs, use_a_device_per_core
    from ancra_jax.paper import figures

    use_a_device_per_core()
    keep_compiled_programs()
    figures.run(options, workdirs)


def _reproduce(runs: Sequence[runs_lib.Run], options: argparse.Namespace) -> int:
    if options.scale == "tiny":
        print(REHEARSAL)
    failures = runs_lib.run_all(runs)
    started = [run for run in runs if (as_path(run.workdir) / "config.json").exists()]
    if options.table in FIGURES:
        if failures:
            failures["figure"] = "is drawn when all runs are there"
        else:
            _draw(options, [run.workdir for run in runs])
    elif started and runs_lib.call(runs_lib.report_command(started, options)):
        failures["report"] = "it could not be written"
    elif finished := [run for run in started if not run.unfinished]:
        study = options.table in STUDIES
        others = [run.title for run in started if run.unfinished]
        print(f"\n{(write_study if study else write_claims)(finished, options, others)}\n")
        name = "study" if study else "claims"
        print(f"written to {options.report}: {name}.md, {name}.json, report.html, ...")
    for title, problem in failures.items():
        print(f"failed: {title}: {problem}", file=sys.stderr)
    if failures:
        print("The same command tries again what failed.", file=sys.stderr)
    return 1 if failures else 0
