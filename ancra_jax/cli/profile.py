"""Traces of where the time goes: ``--profile_steps=10:20``, for TensorBoard, XProf or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from ancra_jax.config import local_path
from ancra_jax.errors import UsageError


def check_steps(steps: str) -> tuple[int, int]:
    """Return the first and the last step of FIRST:LAST, counted from 1; (0, 0) if none is wanted.

    Raises:
      UsageError: it says something else.
    """
    first, _, last = steps.partition(":")
    if not steps:
        return 0, 0
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(f"--profile_steps={steps}: must be FIRST:LAST, from 1, such as 10:20")
    return int(first), int(last)


class Profile:
    """Traces some steps of a command into ``profile/process-N`` of its work directory.

    Use as a context manager, and say after every step that it is over. Nothing happens where no
    steps are wanted.
    """

    def __init__(self, steps: str, workdir: str):
        """Take FIRST:LAST, or ``''``; steps are counted from 1 at the start of the command.

        Raises:
          UsageError: as `check_steps`; the work directory is not on a disk.
        """
        self._first, self._last = check_steps(steps)
        self._begun = 0
        self._tracing = False
        if steps:
            name = f"process-{jax.process_index()}"
            self._directory = (
                Path(local_path(workdir, "--profile_steps: --workdir")) / "profile" / name
            )

    def __enter__(self) -> "Profile":
        self.step()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        if self._begun < self._first and not any(error):
            print(
                f"warning: --profile_steps={self._first}:{self._last}: no step was traced, there "
                f"were only {self._begun - 1}"
            )

    def step(self, results: Any = None) -> None:
        """Say that a step is over; ``results`` are what it computes, which is waited for."""
        if self._tracing and self._begun == self._last:
            jax.block_until_ready(results)
            self._stop()
        self._begun += 1
        if self._begun == self._first:
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
