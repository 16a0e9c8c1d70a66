"""Every example runs as ``python examples/x.py`` in another directory runs it."""

import importlib
import re
import runpy
import warnings

import pytest

from tests.support import ROOT

FILES = sorted((ROOT / "examples").glob("*.py"))
OTHERS = ("equinox", "haiku")  # which the package does not need


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_example(tmp_path, path, monkeypatch, capsys):
    for name in OTHERS:
        if f"import {name}" in path.read_text():
            pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", printed.splitlines()[-1])]
    if path.stem.startswith("train"):  # loss, natural, robust
        assert numbers[1] > 0.8 and 0.3 < numbers[2] <= numbers[1], printed
    elif path.stem == "reverse_attention":  # PGD, all attacks
        assert numbers[0] >= numbers[1], printed
    elif path.stem == "negative_contrast":
        first = float(re.findall(r"loss ([\d.]+)", printed)[0])
        assert numbers[0] < first, printed
    else:
        assert 0 <= numbers[0] <= 1, printed


def test_examples_are_short_and_named_on_a_page():
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 65, path
        assert f"examples/{path.name}" in pages, path
        assert f"python examples/{path.name}" in path.read_text(), path


def test_the_libraries_of_examples_are_those_of_the_development():
    extra = re.search(r"^dev = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    for name in OTHERS:
        assert name in extra[1]
        importlib.import_module(name)
