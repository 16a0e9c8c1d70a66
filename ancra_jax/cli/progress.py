"""What a person sees while a run goes on: a progress bar on a terminal, lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 15.0


class Bar:
    """A progress bar with rate and remaining time; where there is no terminal, a line now and then.

    Use as a context manager.
    """

    def __init__(self, description: str, total: int, done: int = 0, *, quiet: bool = False):
        """Starts at ``done`` of ``total`` steps; ``quiet`` shows nothing."""
        self._console = Console(quiet=quiet, highlight=False)
        self._description, self._total, self._done = description, total, done
        self._text, self._started, self._first, self._last_line = "", 0.0, done, 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            speed_estimate_period=120.0,
        )

    def __enter__(self):
        self._started = self._last_line = time.monotonic()
        self._bar.start()
        self._task = self._bar.add_task(
            self._description, total=self._total, completed=self._done, text=""
        )
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def update(self, done: int, text: str | None = None, total: int | None = None):
        """Says how many steps are done, and what the numbers are at the moment.

        Args:
          done: of the total.
          text: to show from now on.
          total: another one from now on, where the work comes in several passes.
        """
        if total is not None and (total != self._total or done < self._done):
            self._total, self._first, self._started = total, 0, time.monotonic()
            self._bar.update(self._task, total=total)
        self._done = done
        self._text = self._text if text is None else text
        self._bar.update(self._task, completed=done, text=self._text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            steps = done - self._first
            remaining = (self._total - done) * (now - self._started) / max(steps, 1)
            self._console.print(
                f"{self._description} {done}/{self._total}, {format_seconds(remaining)} left, "
                f"{self._text}",
                soft_wrap=True,
            )

    def print(self, line: str):
        """Prints a line above the bar."""
        self._console.print(line, soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
