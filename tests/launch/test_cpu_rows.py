"""launch/cpu_rows.sh with a Python that only writes down what it is told to do."""

import os
import shutil
import subprocess

import pytest

from tests.support import ROOT

SCRIPT = ROOT / "launch/cpu_rows.sh"
PYTHON = """#!/usr/bin/env bash
echo "$@" >> calls
case "$*" in *"$FAIL"*) exit "$STATUS" ;; esac
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(SCRIPT, tmp_path / "launch")
    shutil.copy(SCRIPT.with_name("environment.sh"), tmp_path / "launch")
    with open(tmp_path / "launch/environment.sh", "a") as file:
        file.write("ensure_environment() { :; }\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def run(tree, fail="nothing", status="0", **more):
    settings = {"FAIL": fail, "STATUS": status, "SEEDS": "0 1", "METHODS": "trades pgd_at"} | more
    completed = subprocess.run(
        ["bash", "launch/cpu_rows.sh", "data.npz", "out"],
        cwd=tree,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    called = tree / "calls"
    calls = called.read_text().splitlines() if called.exists() else []
    rows = [next(a for a in call.split() if a.startswith("--workdir"))[14:] for call in calls]
    return completed, list(zip(rows, [call.split()[1][10:] for call in calls], strict=True)), calls


def test_every_seed_of_every_method_is_trained_and_evaluated(tree):
    completed, rows, calls = run(tree)
    assert completed.returncode == 0, completed.stderr
    expected = ["trades-0", "pgd_at-0", "trades-1", "pgd_at-1"]
    assert rows == [(row, what) for row in expected for what in ("train", *3 * ("evaluate",))]
    train, *evaluations = calls[-4:]
    assert "--config=configs/cifar10.py:pgd_at --config.seed=1 " in train
    assert "--config.data.data_dir=data.npz --config.model.width=8 " in train
    for suite, evaluate in zip(("paper", "adaptive", "diagnostics"), evaluations, strict=True):
        assert evaluate.endswith(f"--suite={suite} --adaptive_budget=quick --num_examples=200")


@pytest.mark.parametrize(("command", "evaluations"), [("train", 0), ("evaluate", 1)])
def test_a_row_that_fails_ends_there_and_holds_nobody_up(tree, command, evaluations):
    completed, rows, _ = run(tree, fail=f"{command} --workdir=out/trades-0", status="2")
    assert completed.returncode == 1
    assert "failed: --workdir=out/trades-0" in completed.stderr
    assert rows.count(("trades-0", "evaluate")) == evaluations
    assert ("pgd_at-0", "train") in rows and ("pgd_at-1", "evaluate") in rows


def test_a_signal_stops_all(tree):
    completed, rows, _ = run(tree, fail="evaluate --workdir=out/trades-0", status="143")
    assert completed.returncode == 143
    assert rows[-1] == ("trades-0", "evaluate")


def test_averaged_weights_are_kept_and_evaluated(tree):
    _, _, calls = run(tree, WEIGHTS="ema", SUITES="worst_case")
    for train, evaluate in zip(calls[::2], calls[1::2], strict=True):
        assert train.endswith("--config.ema.decay=0.995")
        assert evaluate.endswith("--num_examples=200 --weights=ema")
    completed, _, _ = run(tree, WEIGHTS="swa")
    assert completed.returncode == 2 and "WEIGHTS=swa" in completed.stderr
