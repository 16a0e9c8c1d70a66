"""Campaigns in slices: what is planned, what is carried, and that nothing changes the numbers."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
from small_runs import SMALL

from ancra_jax import campaign, campaign_carry, campaign_rows
from ancra_jax import config as config_lib
from ancra_jax import workdir as workdir_lib
from ancra_jax.campaign import EXIT_MORE, Campaign, Options
from ancra_jax.campaign_carry import Limits, open_work, unpack, write_output
from ancra_jax.campaign_plan import Rates, forwards_per_image, images_of, make_plan
from ancra_jax.campaign_progress import EVALUATING, FINISHED, TRAINING, Progress, from_json
from ancra_jax.campaign_rows import CampaignRow
from ancra_jax.checkpoint import Checkpoints
from ancra_jax.errors import UsageError
from ancra_jax.evaluate import evaluate
from ancra_jax.interruption import Interrupted
from ancra_jax.publish_record import records_of
from ancra_jax.recipes import recipe
from ancra_jax.reproduce_runner import Runner, Stopped
from ancra_jax.results import read_arrays
from ancra_jax.train import train

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = SMALL | {"selection.every_epochs": 1}
ROWS = [
    CampaignRow("natural-short", "natural", SETTINGS, "quick", 16),
    CampaignRow("pgd_at-short", "pgd_at", SETTINGS, "quick", 16),
]


def test_the_cost_of_a_step_in_forward_passes():
    costs = {
        "natural": 3,
        "pgd_at": 23,
        "trades": 26,
        "trades_awp": 32,
        "trades_ra": 26,
        "trades_anc": 49,
        "trades_ancra": 49,
        "pgd_at_ancra": 49,
    }
    for method, cost in costs.items():
        config = config_lib.from_mapping(recipe("cifar10", method))
        assert forwards_per_image(config) == cost, method
    assert images_of(config) == 120 * 382 * 128


def test_rows_are_those_that_are_worth_most_first():
    rows = campaign_rows.campaign_rows()
    names = [row.name for row in rows]
    assert names[:2] == ["trades-short", "trades_ancra-short"]
    assert names[-2:] == ["trades-long", "trades_ancra-long"]
    for row in rows:
        config = row.config("somewhere")
        assert config.name == row.method and config.model.dtype == "bfloat16"
        assert config.epochs == (25 if row.name.endswith("short") else 120)
    long = rows[-1].config()
    paper = config_lib.from_mapping(recipe("cifar10", "trades_ancra"))
    assert (long.batch_size, long.optimizer) == (paper.batch_size, paper.optimizer)
    assert [row.name for row in campaign_rows.campaign_rows(rehearse=True)] == [
        r.name for r in rows
    ]


def test_the_plan_takes_what_fits_in_the_order_of_value(tmp_path):
    rows = campaign_rows.campaign_rows(num_examples=100)
    rates = Rates(forwards=250_000.0, evaluation=1.2)
    plan = make_plan(rows, Progress(), tmp_path, rates, seconds_left=1000.0)
    trades, ancra = plan[:2]
    images = 25 * (49_000 // 256) * 256
    assert trades.train_seconds == pytest.approx(60 + images * 26 / 250_000)
    assert ancra.train_seconds == pytest.approx(60 + images * 49 / 250_000)
    assert trades.evaluate_seconds == ancra.evaluate_seconds == pytest.approx(120)
    # 307 + 420 leave 273: too little for TRADES-RA, enough for the natural network.
    assert [item.row.name for item in plan if item.fits] == [
        *("trades-short", "trades_ancra-short", "natural-short"),
    ]
    progress = Progress()
    progress.of("pgd_at-short").status = TRAINING
    progress.of("trades-short").status = FINISHED
    plan = make_plan(rows, progress, tmp_path, rates, seconds_left=100.0)
    assert [item.row.name for item in plan if item.fits] == ["pgd_at-short"]  # what is under way
    assert plan[0].row.name == "pgd_at-short"


def train_row(name, workdir, **changes):
    (row,) = (row for row in ROWS if row.name == name)
    config = row.config()
    return train(dataclasses.replace(config, **changes), str(workdir))


class FakeMachine(Runner):
    """Runs the commands in this process, and tells when its time is over.

    ``stops`` says after how many steps a training is stopped by the end of the slice; ``dry``
    leaves all work out but a measured rate; ``terminate`` sends SIGTERM.
    """

    def __init__(self, monkeypatch):
        self.now, self.calls, self.stops, self.fail = 0.0, [], {}, ()
        self.terminate = self.dry = False
        monkeypatch.setattr(campaign.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(campaign, "Runner", lambda: self)
        monkeypatch.setattr(campaign, "campaign_rows", lambda **_: ROWS)
        monkeypatch.setattr(campaign, "DATA", "digits")
        monkeypatch.setattr(campaign_rows, "DATA", "digits")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, command, deadline):
        _, _, module, *arguments = command
        values = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
        workdir = values["workdir"]
        row = pathlib.Path(workdir).name
        self.calls.append((module.rpartition(".")[2], row))
        self.now += 10
        if row in self.fail:
            return 1
        if self.dry:
            record = {"kind": "train", "step": 4, "images_per_second": 1000.0}
            config = next((one for one in ROWS if one.name == row), ROWS[0]).config()
            workdir_lib.open_for_training(workdir, config)
            (pathlib.Path(workdir) / "metrics.jsonl").write_text(json.dumps(record) + "\n")
            if self.terminate:
                raise Stopped(signal.SIGTERM)
            return 0
        if module == "ancra_jax.evaluate":
            evaluate(workdir, suite=values["suite"], num_examples=int(values["num_examples"]))
            return 0
        stop = self.stops[row].pop(0) if self.stops.get(row) else 0
        train_row(row, workdir, max_steps=stop or int(values["config.max_steps"]))
        assert values["config.epochs"] == str(SETTINGS["epochs"])
        if not stop:
            return 0
        self.now = deadline
        return Interrupted(signal.SIGTERM, stop).exit_status


@pytest.fixture
def machine(monkeypatch):
    return FakeMachine(monkeypatch)


def options(tmp_path, **others):
    folders = {name: str(tmp_path / name) for name in ("output", "workdir")}
    return Options(**{"minutes": 600.0, "trades_step_ms": 10.0, **folders, **others})


def correct(workdir):
    names = ("natural", "fgsm", "pgd3", "cw3")
    return {name: read_arrays(workdir / f"evaluation/best/{name}.npz")["correct"] for name in names}


def test_slices_on_several_machines_give_the_numbers_of_one_run(
    tmp_path, machine, monkeypatch, capsys
):
    monkeypatch.setattr(campaign, "campaign_rows", lambda **_: ROWS[:1])
    work, outputs = tmp_path / "workdir", [tmp_path / f"output{i}" for i in range(3)]
    machine.stops = {"natural-short": [3, 6]}
    assert Campaign(options(tmp_path, output=str(outputs[0]))).run() == EXIT_MORE
    shutil.rmtree(work)  # another machine
    later = [{"state": str(outputs[i]), "output": str(outputs[i + 1])} for i in range(2)]
    assert Campaign(options(tmp_path, **later[0])).run() == EXIT_MORE
    assert Campaign(options(tmp_path, **later[1])).run() == 0  # the same machine, still warm
    assert machine.calls == [*3 * [("train", "natural-short")], ("evaluate", "natural-short")]
    assert "moved to" not in capsys.readouterr().out

    train_row("natural-short", tmp_path / "alone")
    evaluate(str(tmp_path / "alone"), suite="quick", num_examples=16)
    unpack(outputs, tmp_path / "unpacked")
    for where in (work, tmp_path / "unpacked"):
        where = where / "natural-short"
        np.testing.assert_equal(correct(where), correct(tmp_path / "alone"))
        best, expected = (
            Checkpoints(path / "checkpoints", read_only=True)
            for path in (where, tmp_path / "alone")
        )
        step = expected.best_step()
        assert best.best_step() == step
        chex.assert_trees_all_equal(best.read(step)[0]["params"], expected.read(step)[0]["params"])
    (record,) = records_of([str(tmp_path / "unpacked/natural-short")])
    assert [start["step"] for start in record["training"]] == [0, 3, 6] and not record["notes"]


def test_a_row_that_fails_costs_no_other(tmp_path, machine, capsys):
    machine.dry, machine.fail = True, ("natural-short",)
    assert Campaign(options(tmp_path)).run() == 1
    assert machine.calls == [
        *(("train", "natural-short"), ("train", "pgd_at-short"), ("evaluate", "pgd_at-short")),
    ]
    assert "failed: natural-short" in capsys.readouterr().out
    machine.fail = ()
    assert Campaign(options(tmp_path)).run() == 1  # a row that failed is left alone ...
    assert Campaign(options(tmp_path, retry=True)).run() == 0  # ... until it is to be tried again
    assert machine.calls[3:] == [("train", "natural-short"), ("evaluate", "natural-short")]


def test_a_row_that_cannot_be_used_costs_no_other(tmp_path, machine, capsys):
    machine.dry = True
    (tmp_path / "workdir/natural-short").mkdir(parents=True)
    (tmp_path / "workdir/natural-short/config.json").write_text("{")
    assert Campaign(options(tmp_path)).run() == 1
    assert ("evaluate", "pgd_at-short") in machine.calls
    assert "natural-short: failed: --workdir=" in capsys.readouterr().err


def test_a_signal_stops_the_campaign_after_its_state_is_written(tmp_path, machine):
    machine.dry = machine.terminate = True
    assert Campaign(options(tmp_path)).run() == 128 + signal.SIGTERM
    shutil.rmtree(tmp_path / "workdir")
    continued = Campaign(options(tmp_path))
    assert continued.progress.of("natural-short").status == TRAINING
    assert (tmp_path / "workdir/natural-short/metrics.jsonl").exists()
    assert continued.progress.seconds == 10 and continued.seconds_left == 600 * 60 - 10


def test_without_a_rate_the_first_row_is_measured(tmp_path, machine, capsys):
    machine.dry = True
    unmeasured = options(
        tmp_path, trades_step_ms=None, rehearse=True, minutes=1.5, reserve_seconds=1.0
    )
    assert Campaign(unmeasured).run() == 0
    assert machine.calls == [("train", "measured")]
    printed = capsys.readouterr().out
    assert "measuring: 4 steps" in printed
    assert re.search(r"\| natural-short +\| waiting +\| 1.0 ", printed)
    assert not (tmp_path / "workdir/natural-short").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work folder with one finished training."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign_rows, "DATA", "digits")
        train_row("natural-short", folder / "natural-short")
    return folder


@pytest.fixture
def work(tmp_path, trained):
    """The same, to work on."""
    return shutil.copytree(trained, tmp_path / "work")


LARGE = Limits(2**30, 2**30)


def test_the_output_keeps_within_narrow_limits(tmp_path, work):
    progress = Progress(slices=1)
    progress.of("natural-short").status = TRAINING
    for status in (TRAINING, TRAINING, EVALUATING, FINISHED, FINISHED):
        progress.of("natural-short").status = status
        write_output(tmp_path / "out", work, ["natural-short"], progress, LARGE)
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert len(files) == (3 if status == FINISHED else 2)
    assert all(len(path.relative_to(tmp_path / "out").parts) <= 2 for path in files)
    characters = set("".join(str(path.relative_to(tmp_path / "out")) for path in files)) - {"/"}
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in characters)


def test_a_state_that_is_too_large_is_rounded_and_the_row_says_so(tmp_path, work, capsys):
    progress = Progress(slices=1)
    progress.of("natural-short").status = TRAINING
    write_output(tmp_path / "out", work, ["natural-short"], progress, Limits(1, 2**30))
    assert "warning: the state takes" in capsys.readouterr().out
    open_work(tmp_path / "out", tmp_path / "elsewhere")
    note = (tmp_path / "elsewhere/natural-short/notes.txt").read_text()
    assert note.startswith("Parameters were rounded to bfloat16 and momentum to float8 at step 8")
    states = [
        Checkpoints(folder / "natural-short/checkpoints", read_only=True).read(8)[0]
        for folder in (work, tmp_path / "elsewhere")
    ]
    here, there = (jax.tree.leaves(state["params"]) for state in states)
    assert any((one != other).any() for one, other in zip(here, there, strict=True))
    chex.assert_trees_all_close(here, there, rtol=2**-8)
    chex.assert_trees_all_equal(*(state["batch_stats"] for state in states))


def test_a_large_final_checkpoint_is_rounded_before_it_is_evaluated(work, monkeypatch):
    monkeypatch.setattr(campaign_carry, "PIECE_BYTES", 1000)
    run = work / "natural-short"
    campaign_carry.keep_final_checkpoint(run)
    assert (run / "checkpoints_full").is_dir()
    (result, *_) = evaluate(str(run), suite="quick", num_examples=16)
    (record,) = records_of([str(run)])
    assert record["notes"] == ["The parameters were rounded to bfloat16 before the evaluation."]
    assert record["step"] == result["step"]


def test_work_of_another_state_is_moved_aside(tmp_path, work, capsys):
    progress = Progress(slices=1)
    write_output(tmp_path / "out", work, ["natural-short"], progress, LARGE)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine").write_text("1")
    open_work(tmp_path / "out", tmp_path / "elsewhere")
    assert "moved to" in capsys.readouterr().out
    assert (tmp_path / "elsewhere-aside1/mine").exists()
    assert (tmp_path / "elsewhere/natural-short/config.json").exists()


def test_a_slice_that_is_killed_before_it_writes_has_handed_the_state_on(tmp_path, work):
    write_output(tmp_path / "out", work, ["natural-short"], Progress(slices=1), LARGE)
    campaign_carry.hand_on(tmp_path / "out", tmp_path / "next")
    open_work(tmp_path / "next", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/natural-short/config.json").exists()
    campaign_carry.hand_on(tmp_path / "nothing", tmp_path / "next")  # has none, changes none
    assert (tmp_path / "next/campaign.json").exists()


def test_damaged_outputs_are_refused(tmp_path, work):
    write_output(tmp_path / "out", work, ["natural-short"], Progress(), LARGE)
    (piece,) = (tmp_path / "out/state").iterdir()
    os.truncate(piece, 100)
    with pytest.raises(UsageError, match="incomplete or damaged"):
        open_work(tmp_path / "out", tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is no output of a campaign"):
        unpack([tmp_path / "nothing"], tmp_path / "elsewhere")
    for text in ("{", '{"schema": 2}', '{"schema": 1, "rows": {"a": {"status": "x"}}}'):
        with pytest.raises(UsageError, match="is not the state of a campaign"):
            from_json(text, "campaign.json")


def test_a_command_is_stopped_at_its_deadline():
    with Runner() as runner:
        began = time.monotonic()
        status = runner.call(("sleep", "60"), deadline=began + 0.2)
    assert status == -signal.SIGTERM and time.monotonic() - began < 30


def test_the_command_prints_its_plan(tmp_path):
    command = [
        *("launch/campaign.sh", "--minutes=30", "--trades_step_ms=50", "--dry_run"),
        *(f"--workdir={tmp_path}/work", f"--output={tmp_path}/out"),
    ]
    environment = os.environ | {"PYTHON": sys.executable}
    completed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120
    )
    assert completed.returncode == 0, completed.stderr
    assert "30.0 of 30 minutes are left" in completed.stdout, shlex.join(command)
    assert "| trades_ancra-long" in completed.stdout and "does not fit" in completed.stdout
    assert not (tmp_path / "work").exists() and not (tmp_path / "out").exists()
