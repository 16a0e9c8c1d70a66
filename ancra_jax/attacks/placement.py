"""Batches of one static shape, spread over devices."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Bool, Int, PyTree


@dataclass(frozen=True)
class Placement:
    """Where a batch goes: its first axis over all devices, everything else on each of them."""

    batch_size: int  # rows of every batch, a multiple of the number of devices
    rows: Sharding  # of arrays over the batch
    replicated: Sharding  # of everything else

    @classmethod
    def over(cls, devices: Sequence[jax.Device], batch_size: int, examples: int) -> "Placement":
        """Plan batches of equal size, as few as ``batch_size`` allows, so that padding is rare.

        Their size is a multiple of the number of devices.
        """
        number = math.ceil(examples / batch_size)
        size = math.ceil(examples / number / len(devices)) * len(devices)
        if len(devices) == 1:
            only = SingleDeviceSharding(devices[0])
            return cls(size, only, only)
        axis = {"axis_types": (AxisType.Auto,), "devices": tuple(devices)}
        mesh = jax.make_mesh((len(devices),), ("data",), **axis)
        rows, everywhere = PartitionSpec("data"), PartitionSpec()
        return cls(size, NamedSharding(mesh, rows), NamedSharding(mesh, everywhere))

    def smaller(self, examples: int) -> "Placement":
        """Return the same devices for batches of no more than so many examples."""
        devices = self.rows.num_devices
        size = min(self.batch_size, math.ceil(examples / devices) * devices)
        return replace(self, batch_size=size)

    def place(self, rows: PyTree) -> PyTree:
        """Put arrays over the batch on the devices."""
        return jax.device_put(rows, self.rows)

    def replicate(self, tree: PyTree) -> PyTree:
        """Put a pytree on every device."""
        return jax.device_put(tree, self.replicated)

    def batches(
        self, examples: Int[np.ndarray, "examples"]
    ) -> Iterator[tuple[Int[np.ndarray, "batch"], Bool[np.ndarray, "batch"]]]:
        """Cut example numbers into batches.

        Yields:
          ``(rows, active)``: example numbers [batch_size], the last batch padded with its first
          one, and which of them are not padding.
        """
        for first in range(0, len(examples), self.batch_size):
            part = examples[first : first + self.batch_size]
            padding = self.batch_size - len(part)
            rows = np.concatenate([part, np.full(padding, part[0])])
            yield rows, np.arange(self.batch_size) < len(part)


def default_batch_size() -> int:
    """Return 256 on accelerators, 32 on CPU.

    What is still robust seldom fills a batch, and on CPU padding costs what a row costs, while a
    row of a batch of 64 costs only a tenth less.
    """
    return 32 if jax.default_backend() == "cpu" else 256
