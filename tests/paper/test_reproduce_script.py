"""``launch/reproduce.sh`` itself: a row is killed, continued, evaluated and reported."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ancra_jax.paper.__main__ import parse
from ancra_jax.paper.runs import runs_of
from ancra_jax.run.files import read_json_lines
from tests.support import ENVIRONMENT, QUICK, ROOT

# On the digits, with the smallest network that has stages: Table 3's row in seconds.
SMALL = shlex.split(
    "table3 --scale=tiny --rows=trades --suite=quick --num_examples=4 --config.epochs=6 "
    "--config.data.name=digits --config.data.train_examples=200 --config.batch_size=40 "
    "--config.data.selection_examples=40 --config.model.name=wide_resnet10_1 "
    "--config.model.width=2"
)


@pytest.fixture
def checkout(tmp_path):
    """The repository's files, with an environment that is made already."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    for name in ("ancra_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / ".venv/installed-base")
    return tmp_path


def reproduce(checkout, *arguments):
    return subprocess.Popen(
        [f"{checkout}/launch/reproduce.sh", *arguments],
        cwd="/",
        env=ENVIRONMENT | QUICK,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_row_continues_to_the_table(checkout):
    output = checkout / "runs/reproduce-tiny"
    row = output / "cifar10/trades-seed0"
    process = reproduce(checkout, *SMALL)
    deadline = time.monotonic() + 300
    while not (row / "checkpoints/4").is_dir() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "SIGTERM" in text.splitlines()[-1]
    assert not (row / "commands.jsonl").exists()

    process = reproduce(checkout, *SMALL)
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0, text
    assert f"continuing runs/reproduce-tiny/{row.relative_to(output)} at step" in text
    assert "78.92 / " in text and "--scale=tiny" in text
    (claims,) = json.loads((output / "table3/claims.json").read_text())["rows"]
    assert claims["claimed"]["natural"] == 78.92 and claims["num_examples"] == [4]
    assert len(claims["measured"]["pgd_with_p"]) == len(claims["measured"]["worst_case"]) == 1
    assert {"report.html", "report.md", "claims.md"} <= set(os.listdir(output / "table3"))
    finished = [record["command"] for record in read_json_lines(row / "commands.jsonl")]
    (run,) = runs_of(parse(SMALL))
    assert finished == [shlex.join(command[1:]) for command in run.commands]
