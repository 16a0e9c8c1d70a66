"""The tables of docs/methods.md are whole; the method of docs/adding.md runs as it is printed."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from ancra_jax import methods
from ancra_jax.ops.files import read_json_lines
from configs import common
from tests.support import ENVIRONMENT, ROOT
from tests.support.small_runs import small_flags

PAGE = (ROOT / "docs/methods.md").read_text()
ADDING = (ROOT / "docs/adding.md").read_text().partition("## A method")[2]
EXAMPLE = re.findall(r"```python\n(.*?)```", ADDING, re.DOTALL)[0]
COMMANDS = re.findall(r"```\n(ancra [^`]*--plugin=.*?)```", ADDING, re.DOTALL)[0]


def test_every_method_has_a_row():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.split("## What the papers claim")[0], re.MULTILINE)
    assert set(rows) == set(common.METHODS)


def test_every_argument_is_listed():
    line = re.search(r"Arguments after the method's name: (.*?)\.$", PAGE, re.M | re.S).group(1)
    assert re.findall(r"`(\w+)`", line) == sorted(common.ARGUMENTS)


@pytest.mark.slow
def test_a_method_of_ones_own_trains_and_is_evaluated(tmp_path):
    plug_in, workdir = tmp_path / "my_method.py", tmp_path / "run"
    plug_in.write_text(EXAMPLE)

    def run(command, *flags):
        command = command.replace("my_method.py", str(plug_in)).replace("\\\n", "")
        _, *arguments = shlex.split(command.replace("runs/consistency", str(workdir)))
        ancra = [sys.executable, "-m", "ancra_jax.cli.commands"]
        subprocess.run([*ancra, *arguments, *flags], cwd=ROOT, env=ENVIRONMENT, check=True)

    training, evaluation = re.findall(r"^ancra .*?consistency$", COMMANDS, re.DOTALL | re.MULTILINE)
    small = [flag for flag in small_flags() if "model." not in flag]
    run(training, *small, "--config.max_steps=6")
    (_, *steps) = [r for r in read_json_lines(workdir / "metrics.jsonl") if "loss" in r]
    assert all(record["loss_distance"] >= 0 for record in steps)
    assert any(record["negatives_fallback"] == 0 for record in steps)
    options = json.loads((workdir / "config.json").read_text())["method"]["options"]
    assert options == {"temperature": 2.0, "detach": True}

    run(evaluation, "--num_examples=8", "--suite=quick")
    assert (workdir / "evaluation/best/natural.json").exists()
    assert "consistency" not in methods.available()  # it lives in that file alone
