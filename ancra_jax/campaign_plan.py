"""What a campaign does with the time that is left, estimated before it starts."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ancra_jax.campaign_progress import EVALUATING, FINISHED, TRAINING, Progress
from ancra_jax.campaign_rows import CampaignRow
from ancra_jax.config import Config
from ancra_jax.metrics import read_json_lines
from ancra_jax.report_table import MISSING, Table

MEASURED = "measured"  # the folder of a short training of the first row, for its rate alone
TRAIN_EXAMPLES = 50_000
STARTUP_SECONDS = 60.0  # of a phase: imports, data, compilation
# Forward passes of the evaluation on an average example, and how much slower they are than those of
# a training in that type, since attacks compute in float32. Guesses, used until a row of the
# campaign has been evaluated and its time is known.
EVALUATION_FORWARDS = 10_000
EVALUATION_SLOWDOWN = {"bfloat16": 8.0, "float32": 1.0}


@dataclass(frozen=True)
class Rates:
    """What was measured, or given; None where it is not known.

    Attributes:
      forwards: forward passes of one image in a second of training.
      evaluation: seconds that the evaluation takes for one example.
    """

    forwards: float | None
    evaluation: float | None


@dataclass(frozen=True)
class Item:
    """A row in the plan.

    Attributes:
      row: see there.
      train_seconds: that are left, estimated; None where no rate is known.
      evaluate_seconds: likewise.
      fits: in the time that is left after the rows before it, or is under way.
    """

    row: CampaignRow
    train_seconds: float | None
    evaluate_seconds: float | None
    fits: bool


def forwards_per_image(config: Config) -> int:
    """The cost of a training step, in forward passes of one image.

    A gradient of an input counts 2, one of parameters 3: forward and backward. Of the paper's
    methods TRADES-ANCRA has two attacks of 10 steps and three training forwards, 49 in all.
    """
    contrast = config.negative_contrast.zeta > 0
    if config.method.name == "natural":
        return 3
    attacks = 1 + (contrast and config.negative_contrast.targeted)
    inputs = 1 if config.method.name == "pgd_at" else 2
    inputs += contrast * (2 if config.method.name == "pgd_at" else 1)
    updates = 2 if config.awp.gamma else 1
    return 2 * attacks * config.attack.num_steps + 3 * inputs * updates


def images_of(config: Config) -> int:
    """Images that a whole training sees."""
    examples = config.data.train_examples or TRAIN_EXAMPLES
    held_out = config.data.selection_examples * (config.data.selection_split == "holdout")
    batches = (examples - held_out) // config.batch_size
    return config.epochs * batches * config.batch_size


def measured_rates(
    rows: Sequence[CampaignRow], progress: Progress, work: pathlib.Path, given: Rates
) -> Rates:
    """Rates from what ran; ``given`` where nothing did."""
    forwards, evaluation = [], []
    for name, row in [(MEASURED, rows[0]), *((row.name, row) for row in rows)]:
        for record in _training_records(work / name):
            forwards.append(record["images_per_second"] * forwards_per_image(row.config()))
    for row in rows:
        if progress.of(row.name).status == FINISHED:
            evaluation.append(progress.of(row.name).evaluate_seconds / row.num_examples)
    return Rates(
        statistics.median(forwards) if forwards else given.forwards,
        statistics.median(evaluation) if evaluation else given.evaluation,
    )


def make_plan(
    rows: Sequence[CampaignRow],
    progress: Progress,
    work: pathlib.Path,
    rates: Rates,
    seconds_left: float,
) -> list[Item]:
    """All rows, those under way first, else in their order; what fits is taken greedily.

    A row under way is gone on with as long as any time is left. Without a rate all rows are taken.
    """
    under_way = lambda row: progress.of(row.name).status in (TRAINING, EVALUATING)  # noqa: E731
    items = []
    for row in sorted(rows, key=lambda row: not under_way(row)):
        train = _train_seconds(row, progress, work, rates)
        evaluate = _evaluate_seconds(row, progress, rates)
        needed = (train or 0.0) + (evaluate or 0.0)
        fits = progress.of(row.name).todo and seconds_left > 0
        fits = fits and (under_way(row) or needed <= seconds_left)
        seconds_left -= needed if fits else 0.0
        items.append(Item(row, train, evaluate, fits))
    return items


def plan_table(items: Sequence[Item], progress: Progress) -> str:
    """The plan as Markdown."""
    lines = []
    total = 0.0
    for item in items:
        row = progress.of(item.row.name)
        plan = row.problem or ("planned" if item.fits else "does not fit" if row.todo else "")
        estimates = item.train_seconds, item.evaluate_seconds
        total += sum(one or 0.0 for one in estimates) if item.fits else 0.0
        end = total if item.fits and None not in estimates else None
        lines.append([item.row.name, row.status, *map(_minutes, estimates), _minutes(end), plan])
    headers = ["Row", "Status", "Training, min", "Evaluation, min", "Until its end, min", "Plan"]
    return Table("", headers, lines, numeric=0).markdown()


def _train_seconds(
    row: CampaignRow, progress: Progress, work: pathlib.Path, rates: Rates
) -> float | None:
    if progress.of(row.name).status in (EVALUATING, FINISHED):
        return 0.0
    if rates.forwards is None:
        return None
    config = row.config()
    steps = max((record["step"] for record in _training_records(work / row.name)), default=0)
    images = max(images_of(config) - steps * config.batch_size, 0)
    return STARTUP_SECONDS + images * forwards_per_image(config) / rates.forwards


def _evaluate_seconds(row: CampaignRow, progress: Progress, rates: Rates) -> float | None:
    if progress.of(row.name).status == FINISHED:
        return 0.0
    spent = progress.of(row.name).evaluate_seconds
    if rates.evaluation is not None:
        return max(STARTUP_SECONDS, rates.evaluation * row.num_examples - spent)
    if rates.forwards is None:
        return None
    slowdown = EVALUATION_SLOWDOWN[row.config().model.dtype]
    seconds = row.num_examples * EVALUATION_FORWARDS * slowdown / rates.forwards
    return max(STARTUP_SECONDS, STARTUP_SECONDS + seconds - spent)


def _training_records(workdir: pathlib.Path) -> list[Mapping]:
    records = read_json_lines(workdir / "metrics.jsonl")
    return [record for record in records if record["kind"] == "train"]


def _minutes(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{seconds / 60:.1f}"
