"""Where a number comes from."""

import datetime
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax


def provenance() -> dict[str, Any]:
    """Return what made a number: versions, device, commit, time."""
    packages = ("ancra-jax", "jax", "jaxlib", "flax", "numpy")
    return {
        "versions": {name: _version(name) for name in packages}
        | {"python": platform.python_version()},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "commit": _commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a source tree that was copied here, not installed
        return "not installed"


def _commit() -> str | None:
    """Return the commit of the source tree that is running; None for an installed package."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    directory = pathlib.Path(__file__).parent
    try:
        completed = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None
