"""As many rows as a borrowed accelerator's time allows: ``launch/campaign.sh --minutes=N``.

One call is one slice of the campaign: it goes on where the last one stopped, on this machine or
another, prints what it plans, works until the slice's time is over and writes all that the next
slice needs to ``--output``. The exit status is 0 when nothing is left to do, 75 when another slice
goes on. Run it in the root of the repository. See docs/campaign.md.
"""

import pathlib
import sys
import time
from dataclasses import dataclass, fields
from typing import Any

import jax
from absl import flags

from ancra_jax import campaign_carry, cli
from ancra_jax import workdir as workdir_lib
from ancra_jax.campaign_plan import (
    MEASURED,
    Item,
    Rates,
    forwards_per_image,
    make_plan,
    measured_rates,
    plan_table,
)
from ancra_jax.campaign_progress import EVALUATING, FINISHED, TRAINING, WAITING
from ancra_jax.campaign_rows import DATA, CampaignRow, campaign_rows
from ancra_jax.errors import UsageError
from ancra_jax.reproduce_plan import Command
from ancra_jax.reproduce_runner import Runner, Stopped

EXIT_MORE = 75  # EX_TEMPFAIL: try again


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was told; its flags say what each is."""

    minutes: float
    slice_minutes: float = 9.0
    reserve_seconds: float = 60.0
    state: str = ""
    output: str = "runs/campaign/output"
    workdir: str = "runs/campaign/work"
    data_dir: str = ""
    suite: str = "all"
    num_examples: int = 1000
    trades_step_ms: float | None = None
    evaluation_seconds: float | None = None
    state_mib: float = 42.0
    output_mib: float = 60.0
    rehearse: bool = False
    retry: bool = False


class Campaign:
    """One slice.

    Attributes:
      options: see there.
      rows: all of them.
      progress: how far they are.
    """

    def __init__(self, options: Options):
        """Takes up what ``--state`` and ``--workdir`` hold."""
        self._started = time.monotonic()
        self.options = options
        self.rows = campaign_rows(
            rehearse=options.rehearse, suite=options.suite, num_examples=options.num_examples
        )
        self.work, self.output = pathlib.Path(options.workdir), pathlib.Path(options.output)
        self.state = pathlib.Path(options.state or options.output)
        self.progress = campaign_carry.open_work(self.state, self.work)
        self.progress.slices += 1
        self._spent_before = self.progress.seconds
        slice_seconds = min(60 * options.slice_minutes, self.seconds_left)
        self._stop_at = self._started + slice_seconds - options.reserve_seconds
        # A phase that would hardly get beyond its compilation is left to the next slice.
        self._last_start = self._stop_at - slice_seconds / 10
        if options.retry:
            for row in self.progress.rows.values():
                row.problem = ""

    def plan(self) -> list[Item]:
        """What the time that is left is for."""
        given = Rates(None, self.options.evaluation_seconds)
        if self.options.trades_step_ms:
            config = self.rows[0].config()
            forwards = config.batch_size * forwards_per_image(config)
            given = Rates(1e3 * forwards / self.options.trades_step_ms, given.evaluation)
        rates = measured_rates(self.rows, self.progress, self.work, given)
        return make_plan(self.rows, self.progress, self.work, rates, self.seconds_left)

    @property
    def seconds_left(self) -> float:
        """Of the budget."""
        spent = self._spent_before + time.monotonic() - self._started
        return max(60 * self.options.minutes - spent, 0.0)

    def run(self) -> int:
        """Works until the rows, the slice or the budget end; returns the exit status."""
        campaign_carry.hand_on(self.state, self.output)
        with Runner() as runner:
            try:
                self._work(runner)
            except Stopped as stopped:
                self._write()
                print(stopped)
                return stopped.exit_status
            self._write()
        if any(item.fits for item in self.plan()):
            print("not finished: the same command goes on")
            return EXIT_MORE
        failed = [name for name, row in self.progress.rows.items() if row.problem]
        print(f"nothing is left that fits; failed: {', '.join(failed) or 'nothing'}")
        return 1 if failed else 0

    def _work(self, runner: Runner):
        plan = self.plan()
        if any(item.fits and item.train_seconds is None for item in plan):
            row, steps = self.rows[0], 4 if self.options.rehearse else 40
            print(f"measuring: {steps} steps of {row.name}", flush=True)
            command = self._train_command(row, self.work / MEASURED, max_steps=steps)
            if status := runner.call(command, deadline=self._stop_at):
                print(f"warning: it ended with exit status {status}", flush=True)
            plan = self.plan()
        self.print_plan(plan)
        phases = {
            "training": ((WAITING, TRAINING), self._train),
            "evaluation": ((EVALUATING,), self._evaluate),
        }
        for row in [item.row for item in plan if item.fits]:
            for name, (statuses, work) in phases.items():
                progress = self.progress.of(row.name)
                if not progress.todo or progress.status not in statuses or self._time_is_over():
                    continue
                print(f"== {row.name}: {name}", flush=True)
                try:
                    work(runner, row)
                except UsageError as error:
                    self._fail(row, str(error))
                self._write()

    def print_plan(self, plan: list[Item]):
        """Prints every row with the minutes it is thought to take."""
        if self.options.rehearse:
            print("A rehearsal with tiny settings: no number of it means anything.")
        print(
            f"Slice {self.progress.slices} of {self.options.slice_minutes:g} minutes; "
            f"{self.seconds_left / 60:.1f} of {self.options.minutes:g} minutes are left.\n\n"
            f"{plan_table(plan, self.progress)}\n",
            flush=True,
        )

    def _time_is_over(self) -> bool:
        return time.monotonic() >= self._last_start

    def _train_command(
        self, row: CampaignRow, workdir: pathlib.Path, max_steps: int = 0
    ) -> Command:
        settings = {**row.overrides, "data.data_dir": self.options.data_dir, "max_steps": max_steps}
        return _python(
            "train",
            f"--config=configs/{DATA}.py:{row.method}",
            *(f"--config.{name}={value}" for name, value in settings.items()),
            f"--workdir={workdir}",
        )

    def _train(self, runner: Runner, row: CampaignRow):
        progress, workdir = self.progress.of(row.name), self.work / row.name
        progress.status = TRAINING
        began = time.monotonic()
        done = self._run(runner, row, self._train_command(row, workdir))
        progress.train_seconds += time.monotonic() - began
        if done:
            campaign_carry.keep_final_checkpoint(workdir)
            progress.status = EVALUATING

    def _evaluate(self, runner: Runner, row: CampaignRow):
        progress, workdir = self.progress.of(row.name), self.work / row.name
        workdir_lib.open_for_training(str(workdir), row.config(self.options.data_dir))
        command = _python(
            "evaluate",
            *(f"--workdir={workdir}", f"--suite={row.suite}", f"--num_examples={row.num_examples}"),
        )
        began = time.monotonic()
        done = self._run(runner, row, command)
        progress.evaluate_seconds += time.monotonic() - began
        if done:
            progress.status = FINISHED

    def _run(self, runner: Runner, row: CampaignRow, command: Command) -> bool:
        """Whether a command came to its end; a failure is noted and holds nobody up."""
        status = runner.call(command, deadline=self._stop_at)
        if status and time.monotonic() < self._stop_at:
            self._fail(row, f"{command[2]} ended with exit status {status}")
        return status == 0

    def _fail(self, row: CampaignRow, problem: str):
        self.progress.of(row.name).problem = f"failed: {problem}"
        print(f"{row.name}: failed: {problem}", file=sys.stderr, flush=True)

    def _write(self):
        self.progress.seconds = self._spent_before + time.monotonic() - self._started
        limits = campaign_carry.Limits(
            int(self.options.state_mib * 2**20), int(self.options.output_mib * 2**20)
        )
        names = [row.name for row in self.rows]
        campaign_carry.write_output(self.output, self.work, names, self.progress, limits)


def _python(command: str, *arguments: str) -> Command:
    return (sys.executable, "-m", f"ancra_jax.{command}", *arguments)


def define_flags():
    """The command's flags."""
    default = Options(minutes=0)
    flags.DEFINE_float("minutes", None, "Budget of the campaign, all slices.", lower_bound=0)
    flags.DEFINE_float("slice_minutes", default.slice_minutes, "Time of this call.", 0)
    flags.DEFINE_float("reserve_seconds", default.reserve_seconds, "Of it, to stop and write.", 0)
    flags.DEFINE_string("state", default.state, "Output of the last slice; empty: --output.")
    flags.DEFINE_string("output", default.output, "Folder for what the next slice needs.")
    flags.DEFINE_string("workdir", default.workdir, "Work directories, of this machine.")
    flags.DEFINE_string("data_dir", default.data_dir, "CIFAR-10: see docs/data.md.")
    flags.DEFINE_string("suite", default.suite, "Of the evaluation, see ancra_jax.evaluate.")
    flags.DEFINE_integer("num_examples", default.num_examples, "First test images evaluated.", 1)
    flags.DEFINE_float("trades_step_ms", None, "A step of the first row takes, if known.", 0)
    flags.DEFINE_float("evaluation_seconds", None, "An example takes, if known.", 0)
    flags.DEFINE_float("state_mib", default.state_mib, "Most that the next slice can carry.", 0)
    flags.DEFINE_float("output_mib", default.output_mib, "Most that the output may take.", 0)
    flags.DEFINE_bool("rehearse", False, "Tiny settings, for a CPU; no number means anything.")
    flags.DEFINE_bool("retry", False, "Try again what failed.")
    flags.DEFINE_bool("dry_run", False, "Print the plan and run nothing.")
    flags.DEFINE_list("unpack", [], "Only write these outputs out to --workdir, OUTPUT[,...].")


def main(arguments: flags.FlagValues) -> int | None:
    """The command."""
    jax.config.update("jax_platforms", "cpu")  # the accelerator is for the commands that it starts
    if arguments.unpack:
        work = pathlib.Path(arguments.workdir)
        if work.exists() and any(work.iterdir()):
            raise UsageError(f"--workdir={work}: is not empty; outputs are unpacked into a new one")
        campaign_carry.unpack([pathlib.Path(output) for output in arguments.unpack], work)
        print(f"{work}: {', '.join(sorted(path.name for path in work.iterdir()))}")
        return None
    if arguments.minutes is None:
        raise UsageError("--minutes is missing: the budget of the whole campaign")
    values: dict[str, Any] = {field.name: arguments[field.name].value for field in fields(Options)}
    campaign = Campaign(Options(**values))
    if arguments.dry_run:
        campaign.print_plan(campaign.plan())
        return None
    return campaign.run()


if __name__ == "__main__":
    cli.run(main, define_flags)
