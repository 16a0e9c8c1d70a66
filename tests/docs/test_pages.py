"""The pages as a reader uses them: blocks pasted from top to bottom, commands as they stand."""

import importlib
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ancra_jax import cli, train
from ancra_jax.cli.commands import COMMANDS
from ancra_jax.paper import command as paper
from tests.support import OPTIMIZED, ROOT
from tests.support.processes import run_command
from tools.publish import __main__ as publish

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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
            if re.match(r"(\S*python|ancra|\./launch/\S+|[A-Z_]+=\S+) ", line):
                yield line


LINES = [(page.name, line) for page in PAGES for line in commands(page)]
# tests/run/test_trained.py runs using.md, with smaller attacks.
WITH_CODE = [page for page in PAGES if any(blocks(page, "python")) and page.stem != "using"]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_blocks_run_as_pasted(tmp_path, page):
    code = ""
    for line, block in blocks(page, "python"):
        code += "\n" * (line - 1 - code.count("\n")) + block  # errors have the page's line numbers
    script = tmp_path / f"{page.stem}.py"
    script.write_text(code)
    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=OPTIMIZED, capture_output=True, text=True
    )
    assert ran.returncode == 0, f"{page.name}: {ran.stderr[-4000:]}"


def files_of(page, directory):
    """Write the files that a page tells to save, which begin with their names."""
    for _, block in blocks(ROOT / "docs" / page, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (directory / name[1]).write_text(block)


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value[:60])
def test_a_command_is_understood(tmp_path, page, line):
    words = shlex.split(line, comments=True)
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
    if page.endswith("data.md"):
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
