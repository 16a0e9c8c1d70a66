"""The example of docs/methods.md is run as it is printed."""

import re
import shlex
import subprocess
import sys

import pytest

from ancra_jax import methods
from ancra_jax.run.files import read_json_lines
from configs import common
from tests.support import ENVIRONMENT, ROOT
from tests.support.small_runs import small_flags

PAGE = (ROOT / "docs/methods.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```\n(python .*?)```", PAGE, re.DOTALL)


def test_every_method_has_a_row():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.split("## What the papers claim")[0], re.MULTILINE)
    assert set(rows) == set(common.METHODS)


def test_every_argument_is_listed():
    line = re.search(r"Arguments after the method's name: (.*)\.", PAGE).group(1)
    assert re.findall(r"`(\w+)`", line) == sorted(common.ARGUMENTS)


def flags_of(command):
    """The flags of a printed command, but for the run's directory."""
    return [flag for flag in shlex.split(command) if flag.startswith("--config")]


@pytest.mark.slow
def test_a_method_of_ones_own_trains_and_is_evaluated(tmp_path):
    (tmp_path / "my_method.py").write_text(EXAMPLE)
    training, evaluation = (c for c in COMMANDS if "my_method" in c)
    small = [flag for flag in small_flags() if "model." not in flag]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def run(*arguments):
        command = [sys.executable, *arguments, f"--workdir={tmp_path}/run"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)

    run(f"{tmp_path}/my_method.py", *flags_of(training), *small, "--config.max_steps=6")
    (_, *steps) = [r for r in read_json_lines(tmp_path / "run/metrics.jsonl") if "loss" in r]
    assert all(record["loss_distance"] >= 0 for record in steps)
    assert any(record["negatives_fallback"] == 0 for record in steps)
    assert "consistency" not in methods.available()  # it lives in that file alone

    run(*shlex.split(evaluation)[1:3], "--num_examples=8", "--suite=quick")
    assert (tmp_path / "run/evaluation/best/natural.json").exists()
