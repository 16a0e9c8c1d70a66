"""The pages as a reader uses them: blocks pasted from top to bottom, commands as they stand."""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from ancra_jax import attacks, cli, train
from ancra_jax.attacks.adaptive import BUDGETS
from ancra_jax.cli.commands import COMMANDS
from ancra_jax.paper import command as paper
from tests.support import ENVIRONMENT, ROOT
from tests.support.processes import run_command
from tests.support.small_runs import SMALL
from tools.publish import __main__ as publish

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHED = re.compile(
    r"^(\./launch/gpu\.sh|\./launch/tpu_vm\.sh run NAME|sbatch .*slurm\.sbatch) (?!install)"
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAM = re.compile(
    r"python -m ancra_jax\.(\w+)|ancra (\w+)|python -m (tools\.publish|benchmarks)"
)


def blocks(page, *languages):
    """The page's blocks in these languages, with the number of their first line."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        if match[1] in languages:
            yield text.count("\n", 0, match.start(2)) + 1, match[2]


def commands(page):
    """Every command of the page's blocks, as words."""
    for _, block in blocks(page, "", "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\S*python|ancra|sbatch|\./launch/\S+|[A-Z_]+=\S+) ", line):
                yield line


LINES = [(page.name, line) for page in PAGES for line in commands(page)]
ABOUT_A_RUN = ("training", "using")  # the second uses what the first has trained
WITH_CODE = [page for page in PAGES if any(blocks(page, "python")) and page.stem not in ABOUT_A_RUN]
SMALLER = f"""
import runpy

def get_config(argument=None):
    config = runpy.run_path({str(ROOT / "configs/digits.py")!r})["get_config"](argument)
    config.update_from_flattened_dict({SMALL | {"data.test_examples": 100}})
    return config
"""
LITTLE = attacks.AdaptiveBudget(
    num_steps=1, num_targets=1, num_restarts=1, num_queries=2, exhaustive=False
)
CHECK = {
    "adding": """
from tests.support.trained import random_model

model = random_model()
little = attacks.AdaptiveBudget(1, 1, 1, 2, False)
images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
mine = [defence for defence in model.defences if defence.name == "heads"]
result = attacks.adaptive(model, images, labels, epsilon=0.1, budget=little, defences=mine)
assert "pgd-heads" in [record.name for record in result.records]
"""
}


def code_of(page):
    """The page's code, at the page's line numbers, so that errors have these."""
    code = ""
    for line, block in blocks(page, "python"):
        code += "\n" * (line - 1 - code.count("\n")) + block
    return code


@pytest.mark.slow
def test_pages_about_a_run_are_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.py").write_text(SMALLER)  # a file of one's own goes first
    monkeypatch.setitem(BUDGETS, "standard", LITTLE)
    monkeypatch.setattr(attacks, "autoattack", lambda *args, **options: None)  # README runs it
    for name in ABOUT_A_RUN:
        page, names = ROOT / f"docs/{name}.md", {}
        code = code_of(page).partition("from jax import export\n")[0]  # test_trained.py runs that
        exec(compile(code, page.name, "exec"), names)
    groups = {record.group for record in names["result"].records}
    assert {f"A{number}" for number in range(1, 8)} <= groups  # those that were declared
    assert {"robust.safetensors", "robust.stablehlo", "runs"} <= set(os.listdir())
    assert (tmp_path / "runs/report/report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_blocks_run_as_pasted(tmp_path, page, monkeypatch):
    script = tmp_path / f"{page.stem}.py"
    script.write_text(code_of(page) + CHECK.get(page.stem, ""))
    if page.stem != "adding":  # which registers names for good
        monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings(action="ignore"):
            runpy.run_path(str(script), run_name="__main__")
        return
    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert ran.returncode == 0, f"{page.name}: {ran.stderr[-4000:]}"


def files_of(page, directory):
    """Write the files that a page tells to save, which begin with their names."""
    for _, block in blocks(ROOT / "docs" / page, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (directory / name[1]).write_text(block)


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value[:60])
def test_a_command_is_understood(tmp_path, page, line):
    words = shlex.split(LAUNCHED.sub("ancra ", line).replace("%a", "0"), comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    words[0] = words[0].removeprefix(".venv/bin/")
    if words[0].startswith("./launch/"):
        assert (ROOT / words[0]).is_file()
        if words[0].endswith("reproduce.sh") and "--help" not in words:
            assert paper.parse(words[1:]).table == words[1]
        return
    match = PROGRAM.match(" ".join(words))
    if not match:
        assert words[0] == "python" and (ROOT / words[1]).is_file(), line
        return
    name = match[1] or match[2] or match[3]
    arguments = words[2:] if match[2] else words[3:]
    if name == "benchmarks":
        return  # its flags are those of argparse, which its own tests parse
    if page.endswith("adding.md"):
        files_of(page, tmp_path)
    if name == "paper":
        assert paper.parse(arguments).table == arguments[0]
        return
    module = COMMANDS[name][0] if match[2] else f"ancra_jax.{name}"
    command = publish if name == "tools.publish" else importlib.import_module(module)
    check_parsed(command, tmp_path, arguments)


def check_parsed(command, directory, arguments):
    """Let a command read its flags, and its configuration, and stop there."""
    arguments = [
        re.sub(r"^--config=(\w+\.py)", rf"--config={directory}/\1", one)
        if (directory / one.removeprefix("--config=").partition(":")[0]).is_file()
        else one
        for one in arguments
        if not one.startswith("--plugin=")
    ]
    read = []

    def stop(flags):
        if command is train:
            read.append(cli.read_settings(flags.config))
            assert flags.workdir
        return 0

    fake = SimpleNamespace(__name__="command", main=stop, define_flags=command.define_flags)
    finished = run_command(fake, *arguments)
    assert finished.status in (None, 0), finished.error
    assert len(read) == (command is train)
