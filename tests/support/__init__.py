"""What tests share."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
"""For the processes that tests start."""
