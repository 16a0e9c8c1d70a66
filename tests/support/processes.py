"""Python in processes of its own, for tests of devices and of memory."""

import subprocess
import sys

from tests.support import ENVIRONMENT


def run_python(code: str, *arguments: str, devices: int = 1, **environment: str) -> str:
    """Returns what the code printed; fails with what it wrote to stderr."""
    environment |= {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout
