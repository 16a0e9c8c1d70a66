"""What tests share."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
"""For the processes that tests start."""
OPTIMIZED = ENVIRONMENT | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
"""For those that compute more than they compile; see tests/conftest.py."""
