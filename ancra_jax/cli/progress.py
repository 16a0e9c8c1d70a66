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
        """Start at ``done`` of ``total`` steps; show nothing if ``quiet``."""
        self._console = Console(quiet=quiet, highlight=False)
        self._first = done  # when the clock was started
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
        self._bar.add_task(description, start=False, total=total, completed=done, text="")

    def __enter__(self) -> "Bar":
        self._started = self._last_line = time.monotonic()
        self._bar.start()
        self._bar.start_task(self._bar.tasks[0].id)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, text: str | None = None, total: int | None = None) -> None:
        """Show how many steps are done.

        A text or a total that is given holds from now on: where the work comes in several passes,
        each has a total of its own.
        """
        task = self._bar.tasks[0]
        now = time.monotonic()
        if total is not None and (total != task.total or done < task.completed):
            self._first = 0
            self._started = now
        text = task.fields["text"] if text is None else text
        self._bar.update(task.id, completed=done, total=total, text=text)
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            left = (task.remaining or 0) * (now - self._started) / max(done - self._first, 1)
            progress = f"{task.description} {done}/{task.total}, {format_seconds(left)} left"
            self.print(f"{progress}, {text}" if text else progress)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
