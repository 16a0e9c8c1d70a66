"""Commands on independent rows use a device for each core, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

COUNT = """
import os
from ancra_jax.cli.backend import use_a_device_per_core
use_a_device_per_core()
import jax
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
print(len(jax.devices()), min(8, cores))
"""
STARTED = """
import jax
before = len(jax.devices())
from ancra_jax.cli.backend import use_a_device_per_core
use_a_device_per_core()
print(len(jax.devices()), before)
"""


@pytest.mark.parametrize(
    ("code", "chosen", "expected"),
    [
        (COUNT, {}, None),
        (COUNT, {"JAX_NUM_CPU_DEVICES": "3"}, 3),
        (COUNT, {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
        (STARTED, {}, None),
    ],
    ids=["cores", "jax variable", "xla flags", "already started"],
)
def test_number_of_devices(code, chosen, expected):
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"JAX_PLATFORMS": "cpu"} | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    found, otherwise = map(int, done.stdout.split())
    assert found == (expected or otherwise)
