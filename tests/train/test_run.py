"""Training, evaluation and report from Python code, as in a notebook."""

import dataclasses
import json

import ml_collections
import pytest

import ancra_jax
from ancra_jax import cli
from ancra_jax.errors import UsageError
from configs import digits
from tests.support import ROOT
from tests.support.fake_runs import PGD, make_run
from tests.support.processes import run_command
from tests.support.small_runs import SMALL, small_config

TRADES = f"{ROOT}/configs/digits.py:trades"


def forms():
    config = digits.get_config("trades")
    yield "path", TRADES
    yield "ConfigDict", config
    yield "mapping", config.to_dict()
    yield "Config", ancra_jax.config.from_mapping(config)
    yield "mixed", {**config, "optimizer": ml_collections.FrozenConfigDict(config.optimizer)}


@pytest.mark.parametrize(("form", "source"), list(forms()))
def test_settings_come_in_any_usual_form(form, source):
    before = str(source)
    nested = {"optimizer": {"learning_rate": 1}, "attack.epsilon": 0.2}
    config = cli.settings_of(source, nested)
    assert (config.name, config.epochs, config.optimizer.schedule) == ("trades", 15, "cosine")
    assert config.optimizer.learning_rate == 1.0 and config.attack.epsilon == 0.2
    assert config == cli.settings_of(config, {}) and str(source) == before
    flags = (".optimizer.learning_rate=1", ".attack.epsilon=.2")
    assert cli.read_settings([TRADES, *flags]) == config
    group = ".optimizer={'learning_rate': 1}"  # the file's other settings of it stay
    assert cli.read_settings([TRADES, group, *flags[1:], ".model={}"]) == config


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        (TRADES, {"epoch": 3}, ["--config.epoch", "--config.epochs"]),
        (TRADES, {"epochs": "3", "attack.epsilon": -1}, ["--config.epochs='3'", "epsilon=-1"]),
        (TRADES, {"epochs": {}, "model": {"width": {}}}, ["config.epochs={}", "model.width={}"]),
        (TRADES, {"optimizer": 3, "model.width.x": 1}, ["config.optimizer=3", "model.width"]),
        (f"{TRADES}x", {}, ["'tradesx'", "'trades'"]),
        ({"name": "mine"}, {}, ["--config.data", "--config.method"]),
    ],
)
def test_all_that_is_wrong_is_said_together(tmp_path, source, settings, words):
    with pytest.raises(UsageError) as raised:
        ancra_jax.train.run(source, "nothing://bucket", settings)
    assert all(word in str(raised.value) for word in ["--workdir", *words]), raised.value


def test_from_the_settings_to_the_report(tmp_path):
    workdir = tmp_path / "run"
    config = digits.get_config("trades")
    chosen = {"batch_size": 0, "selection.every_epochs": 0}
    trained = ancra_jax.train.run(config, workdir, SMALL | chosen, epochs=3)
    assert trained.config == small_config(
        "trades", epochs=3, batch_size=16
    ) and trained.workdir == str(workdir)
    assert int(trained.state.step) == 24
    records = [one for one in trained.metrics if one["kind"] == "selection"]
    last, best = trained.selected["last"], trained.selected["best"]
    assert last == (24, 3, records[-1]["natural_accuracy"], records[-1]["robust_accuracy"])
    assert best.robust == max(one["robust_accuracy"] for one in records)
    assert f"{100 * best.natural:.2f}" in repr(trained) == trained._repr_markdown_()
    named = dataclasses.replace(trained, config=dataclasses.replace(trained.config, name="*x*"))
    assert r"**\*x\* (seed 0)" in repr(named)
    again = ancra_jax.train.run(trained.config, workdir)  # finished already
    assert repr(again) == repr(trained)

    first = ancra_jax.evaluate.run(workdir, suite="quick", num_examples=8)
    assert {one["attack"] for one in first.results} == set(first.row.accuracy)
    assert f"robust accuracy: {first.row.worst_case.accuracy:.2%}" in repr(first)
    assert "| PGD-3" in first._repr_markdown_() and "| — " not in first._repr_markdown_()
    assert "upper bound" not in repr(first)

    report = ancra_jax.report.run(workdir)
    assert [row.title for row in report.rows] == [first.row.title] and not report.output
    page = report._repr_html_()
    assert page.count("<figure>") == len(report.pictures) == 3 and "<style" not in page
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run"]
    report = ancra_jax.report.run([workdir], output=tmp_path / "report")
    assert str(report) in (tmp_path / "report/report.md").read_text()
    rows = json.loads((tmp_path / "report/report.json").read_text())["rows"]
    assert rows[0]["accuracy"] == first.row.accuracy


@pytest.mark.parametrize("option", ["suite", "checkpoint", "weights"])
def test_a_word_that_is_none_is_refused(tmp_path, option):
    workdir = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match=f"--{option}='nonsense': allowed are"):
        ancra_jax.evaluate.run(workdir, **{option: "nonsense"})
    with pytest.raises(UsageError, match="--batch_size=-1"):
        ancra_jax.evaluate.run(workdir, batch_size=-1)


def test_results_show_what_strangers_wrote_as_it_is(tmp_path):
    name = "<b>a</b> *x*"
    workdir = make_run(tmp_path / "run", {"natural": PGD}, name=name)
    shown = ancra_jax.evaluate.result.read_evaluation(workdir, "best")
    assert r"\<b\>a\</b\> \*x\*" in repr(shown) and not shown.claim[0]


def test_commands_run_again_in_one_process(tmp_path):
    """As in a notebook, where ``%run`` does so: each defines its flags anew."""
    workdir = make_run(tmp_path / "run")
    for _ in range(2):
        for command in (ancra_jax.train, ancra_jax.evaluate, ancra_jax.report):
            assert "--workdir" in run_command(command, "--help").output
            assert run_command(command, f"--workdir={workdir}").status == 2
