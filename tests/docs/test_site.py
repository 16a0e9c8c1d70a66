"""The site as a reader gets it: built without a warning, whole, and from this machine alone."""

import importlib
import re
import subprocess
import sys

import pytest

from tests.support import ENVIRONMENT, ROOT

PARTS = ("attacks", "config", "convert", "data", "leaderboard", "losses", "methods", "models")
COMMANDS = ("evaluate", "predict", "report", "train")
OF_COMMANDS = ("SUITES", "define_flags", "main")  # parts of the command line


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages, by path; links and anchors that lead nowhere are errors (``strict``)."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", directory]
    ran = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    pages = directory.rglob("*.html")
    return {path.relative_to(directory).as_posix(): path.read_text() for path in pages}


def test_every_page_is_there(site):
    names = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert {name.with_suffix(".html").as_posix() for name in names} <= set(site)
    assert "<h1" in site["index.html"] and "results/index.html" in site


def test_nothing_is_fetched_from_elsewhere(site):
    loaded = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^\s>]*")
    assert {name: found for name, page in site.items() if (found := loaded.findall(page))} == {}


@pytest.mark.parametrize("part", PARTS + COMMANDS)
def test_every_public_name_is_in_the_reference(site, part):
    anchor = re.compile(r'id="(ancra_jax\.[\w.]+)"')
    anchors = {name for page in site.values() for name in anchor.findall(page)}
    names = set(importlib.import_module(f"ancra_jax.{part}").__all__)
    names -= set(OF_COMMANDS) if part in COMMANDS else set()
    ours = [anchor for anchor in anchors if anchor.startswith(f"ancra_jax.{part}.")]
    assert names <= {anchor.rpartition(".")[2] for anchor in ours}
