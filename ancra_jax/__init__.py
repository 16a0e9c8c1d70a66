"""Train robust image classifiers in JAX, and find out how robust they really are.

- ``ancra_jax.attacks``: PGD, APGD, FAB, Square, AutoAttack, adaptive attacks on any JAX model;
- ``ancra_jax.benchmark``: a model measured as on RobustBench's leaderboards;
- ``ancra_jax.load``: a trained network, as one of these models;
- ``ancra_jax.losses``, ``ancra_jax.models``: the equations and networks of the ANCRA paper;
- ``ancra train``, ``evaluate``, ``report``, ``predict``, ``paper``: the commands;
- ``ancra_jax.train.run``, ``.evaluate.run``, ``.report.run``: the same from Python.
"""

import importlib
import sys
from typing import Any

from ancra_jax.errors import MovedNames

__version__ = "0.2.0.dev0"
_LAZY = (
    *("attacks", "benchmark", "convert", "data", "defences", "evaluate", "load", "losses"),
    *("methods", "models", "paper", "predict", "report", "train"),
)

sys.meta_path.append(MovedNames())


def __getattr__(name: str) -> Any:
    """Import the packages that are used without an import of their own when they are needed."""
    if name == "load":
        return importlib.import_module("ancra_jax.run.trained").load
    if name == "benchmark":
        return importlib.import_module("ancra_jax.leaderboard").benchmark
    if name in _LAZY:
        return importlib.import_module(f"ancra_jax.{name}")
    raise AttributeError(f"module 'ancra_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
