"""What a device could do at most."""

import time
from typing import NamedTuple

# Dense FLOP/s of one chip, as data sheets give them, by JAX's device kind: bfloat16 with float32
# sums, and what a float32 convolution is computed in by default (TF32 on NVIDIA's tensor cores;
# bfloat16 passes on TPUs). The first key within the kind's name counts.
_TERA = 1e12
PEAKS = {
    "H200": {"bfloat16": 989 * _TERA, "float32": 494 * _TERA},
    "H100 PCIe": {"bfloat16": 756 * _TERA, "float32": 378 * _TERA},
    "H100": {"bfloat16": 989 * _TERA, "float32": 494 * _TERA},
    "A100": {"bfloat16": 312 * _TERA, "float32": 156 * _TERA},
    "L4": {"bfloat16": 121 * _TERA, "float32": 60 * _TERA},
    "TPU v6 lite": {"bfloat16": 918 * _TERA, "float32": 918 * _TERA},
    "TPU v5 lite": {"bfloat16": 197 * _TERA, "float32": 197 * _TERA},
    "TPU v5": {"bfloat16": 459 * _TERA, "float32": 459 * _TERA},
    "TPU v4": {"bfloat16": 275 * _TERA, "float32": 275 * _TERA},
}


class Chip(NamedTuple):
    """A device, by its data sheet."""

    name: str  # in PEAKS
    memory: float  # bytes
    bandwidth: float  # of it, bytes/s
    link: float  # to other devices, bytes/s in each direction


H100 = Chip("H100", 80e9, 3.35e12, 450e9)
V4 = Chip("TPU v4", 32e9, 1.2e12, 45e9)
V5E = Chip("TPU v5 lite", 16e9, 0.819e12, 45e9)


def table_peak(device_kind: str, dtype: str) -> float | None:
    """The data sheet's FLOP/s of a device; None for one that is not in the table."""
    for name, peaks in PEAKS.items():
        if f"{name} " in f"{device_kind} ":
            return peaks[dtype]
    return None


def matmul_peak(product, size: int, repeats: int = 20) -> float:
    """The best FLOP/s that a square matrix product reached.

    Args:
      product: computes it and waits for it; its operands have ``size`` rows and columns.
      size: of the operands.
      repeats: how often; the fastest counts.
    """
    product()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
