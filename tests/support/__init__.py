"""What tests share."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
"""For the processes that tests start."""
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
"""To be added for those that compile much and compute little."""


def run_on_eight_devices(code: str, *arguments: object, **environment: str) -> str:
    """Runs Python code in a process whose CPU counts as eight devices, and returns its output."""
    devices = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    completed = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=ENVIRONMENT | devices | environment,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout
