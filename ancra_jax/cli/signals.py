"""Signals that stop a run once its checkpoint is saved."""

import signal
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint was saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped at step {step}, which is saved; the same command continues")
        self.exit_status = 128 + number


class StopSignal:
    """Takes SIGTERM and SIGINT as a wish to stop after the step; a second one acts at once."""

    requested = False
    signal: int = signal.SIGTERM

    def __enter__(self) -> "StopSignal":
        self._previous: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # not in the main thread, as in some notebooks and tests
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.signal = True, number
        signal.signal(number, self._previous[number])
