"""What made a number: versions, device, commit, time."""

import datetime
import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax


def provenance() -> dict[str, Any]:
    """What made a number: versions, device, commit, time."""
    return {
        "versions": {
            name: _version(name) for name in ("ancra-jax", "jax", "jaxlib", "flax", "numpy")
        }
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
    """The commit of the source tree that is running, None where it is an installed package.

    A copy without its history is told: ``$ANCRA_JAX_COMMIT``.
    """
    told = os.environ.get("ANCRA_JAX_COMMIT")
    try:
        completed = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return told
    return completed.stdout.strip() or told
