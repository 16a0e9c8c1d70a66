"""Several processes that share a piece of work: each computes its rows of every batch.

Every process makes the same calls with the same arguments. What it computes is on its own devices
only, so no program waits for another process. What is fetched is gathered from all processes, so
all of them have the same numbers and decide alike.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Value = TypeVar("Value")
_CHUNK = 2**28  # bytes that are sent at a time


@dataclass(frozen=True)
class Share:
    """Which rows of every batch this process computes: an equal part, in the processes' order."""

    number: int = 0  # of this process
    count: int = 1  # of processes

    @property
    def is_first(self) -> bool:
        """Whether this process reads and writes files, and shows progress."""
        return self.number == 0

    def own(self, rows: Any) -> Any:
        """Return this process' part of an array over the batch."""
        size = len(rows) // self.count
        return rows if self.count == 1 else rows[self.number * size : (self.number + 1) * size]

    def gather(self, tree: Any) -> Any:
        """Fetch arrays over the processes' parts of a batch, as NumPy's over the whole batch."""
        tree = jax.device_get(tree)
        return tree if self.count == 1 else multihost_utils.process_allgather(tree, tiled=True)

    def from_first(self, function: Callable[[], Value]) -> Value:
        """Call a function in the first process only; all return its result, or raise its error.

        So only one process reads a file, and all agree whether it is there, even on a shared disk
        that shows a new file to one process sooner than to another.
        """
        if self.count == 1:
            return function()
        if not self.is_first:
            value, error = pickle.loads(_broadcast(None))
            if error is not None:
                raise error
            return value
        try:
            value = function()
        except Exception as error:
            _broadcast(pickle.dumps((None, error)))
            raise
        _broadcast(pickle.dumps((value, None)))
        return value


ALONE = Share()


def share_of(devices: Sequence[jax.Device]) -> tuple[Share, list[jax.Device]]:
    """Return this process' share of the work of some devices, and which of them are its own.

    Raises:
      ValueError: the processes do not have equally many of them.
    """
    owners = [device.process_index for device in devices]
    here, own = jax.process_index(), [d for d in devices if d.process_index == jax.process_index()]
    if len(own) == len(devices):
        return ALONE, own
    count = jax.process_count()
    if {owners.count(process) for process in range(count)} != {len(own)}:
        raise ValueError(
            "devices: give jax.local_devices(), or as many of every process, such as jax.devices()"
        )
    return Share(here, count), own


def _broadcast(content: bytes | None) -> bytes:
    """Return the bytes that the first process gives."""
    length = np.array(divmod(len(content or b""), _CHUNK), np.int32)
    whole, rest = multihost_utils.broadcast_one_to_all(length).tolist()
    parts = []
    for start in range(0, whole * _CHUNK + rest, _CHUNK):
        size = min(_CHUNK, whole * _CHUNK + rest - start)
        # Few sizes, for each of which a program is compiled.
        padded = np.zeros(max(1024, 2 ** (size - 1).bit_length()), np.uint8)
        if content is not None:
            padded[:size] = np.frombuffer(content, np.uint8, size, start)
        parts.append(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())
    return b"".join(parts)
