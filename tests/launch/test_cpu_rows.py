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
    parts = [("trades", "train"), ("pgd_at", "train")]
    parts += 3 * [("trades", "evaluate")] + 3 * [("pgd_at", "evaluate")]
    assert rows == [(f"{row}-{seed}", what) for seed in range(2) for row, what in parts]
    train, evaluations = calls[-7], calls[-3:]
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
    assert all(call.endswith("--config.ema.decay=0.995") for call in calls[0:2])
    assert all(call.endswith("--num_examples=200 --weights=ema") for call in calls[2:4])
    completed, _, _ = run(tree, WEIGHTS="swa")
    assert completed.returncode == 2 and "WEIGHTS=swa" in completed.stderr


def test_transfer_is_from_the_other_rows_of_the_seed(tree):
    _, rows, calls = run(tree, TRANSFER="1", METHODS="trades natural pgd_at", SEEDS="3")
    tried = {row: call.rpartition("=")[2] for (row, _), call in zip(rows, calls, strict=True)}
    assert tried["natural-3"] == "out/trades-3,out/pgd_at-3"
    assert "--transfer_from" not in calls[0]
    assert all("--suite=worst_case" in call for call in calls[3:]) and len(calls) == 6
