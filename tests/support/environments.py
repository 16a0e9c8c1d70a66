"""Environments that hold a wheel and what it asks for, nothing else, made without a network."""

import os
import subprocess
import sys
import venv
from collections import defaultdict
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.support import ROOT


def build_wheel(directory: Path) -> Path:
    """Builds a source distribution, and of this a wheel; needs the packages build and hatchling."""
    run([sys.executable, "-m", "build", "--no-isolation", f"--outdir={directory}", ROOT], directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


def make_environment(directory: Path, wheel: Path, *extras: str) -> Path:
    """Installs a wheel with extras into a fresh environment; returns the folder of its commands.

    What the wheel asks for, and what that does, are links into the environment of the tests:
    installing a gigabyte would take minutes.
    """
    venv.create(directory, symlinks=True)
    python = directory / "bin/python"
    site = next(directory.glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    run([*install, "--no-index", "--quiet", wheel], directory)
    (own,) = metadata.distributions(name="ancra-jax", path=[str(site)])
    _link(_needed(own, extras), site)
    return directory / "bin"


def run(command, directory, status: int = 0, **environment: str) -> str:
    """Runs a command outside of the repository and returns what it printed, errors included."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        list(map(str, command)),
        cwd=directory,
        env=variables | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    assert ran.returncode == status, ran.stdout[-4000:]
    return ran.stdout


def _needed(own, extras) -> list[metadata.Distribution]:
    """What a distribution with extras asks for, and what that does, as it is installed here."""
    found: dict[str, metadata.Distribution] = {}
    seen = set()
    waiting = [(own, frozenset(extras))]
    while waiting:
        distribution, chosen = waiting.pop()
        for text in distribution.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in (*chosen, "")):
                continue
            key = (requirement.name, frozenset(requirement.extras))
            if key not in seen and requirement.name != own.name:
                seen.add(key)
                found[requirement.name] = metadata.distribution(requirement.name)
                waiting.append((found[requirement.name], key[1]))
    return list(found.values())


def _link(distributions, site: Path) -> None:
    """Links the files of distributions: whole folders where only one of them has files there."""
    owners = defaultdict(set)
    for distribution in distributions:
        for file in distribution.files or ():
            owners[file.parts[0]].add(distribution.name)
    for distribution in distributions:
        for file in distribution.files or ():
            top = file.parts[0]
            if top in ("..", "__pycache__"):  # scripts
                continue
            part = Path(top) if len(owners[top]) == 1 else Path(file)
            if not (site / part).exists():
                (site / part).parent.mkdir(parents=True, exist_ok=True)
                (site / part).symlink_to(distribution.locate_file(part))
