"""What all measurements share: a workload, a clock, the size of the process. Imports no library."""

import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")


class Workload(NamedTuple):
    """Something that is run over and over.

    Attributes:
      run: starts one run and returns arrays to wait for.
      images: in one run.
      compile_seconds: before the first run.
      loss: of the first run; that of another library with the same weights and draws is equal. None
        where libraries draw their own random numbers.
      operations: floating-point operations of one run, see ``benchmarks.flops``; 0 if not counted.
      robust_accuracy: what an attack's first run leaves.
      robust: which examples it leaves.
      shared: the weights and draws for the other libraries; JAX's workload alone has them.
    """

    run: Callable[[], Any]
    images: int
    compile_seconds: float
    loss: float | None
    operations: int = 0
    robust_accuracy: float | None = None
    robust: list[bool] | None = None
    shared: dict[str, np.ndarray] = {}  # noqa: RUF012


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of a call, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def resident_mib(peak: bool = False) -> float:
    """Resident memory of this process, or its largest so far."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
