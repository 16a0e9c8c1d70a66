"""What a person sees while a run goes on: a bar on a terminal or in a notebook, elsewhere lines."""

import html
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 15.0
"""Where there are lines, there are ten of a long run, and never more than one in this time."""
_REDRAW_EVERY_SECONDS = 0.25


class Bar:
    """A progress bar with rate and remaining time.

    On a terminal it is drawn by rich, in a notebook's kernel it is one output that changes. Where
    neither can be, as in a log or under a notebook's ``!command``, a line is printed at the start,
    now and then, and at the end. Use as a context manager.
    """

    def __init__(
        self,
        description: str,
        total: int,
        done: int = 0,
        *,
        quiet: bool = False,
        watch: Callable[[], object] = lambda: None,
    ):
        """Start at ``done`` of ``total`` steps; show nothing if ``quiet``.

        ``watch`` is called whenever more steps are done.
        """
        self._watch = watch
        self._console = Console(quiet=quiet, highlight=False, force_jupyter=False)
        self._quiet = quiet
        self._drawn = self._console.file.isatty() and not _below_a_notebook()
        self._output: Any = None  # of a notebook's cell
        self._note = self._clock = ""
        self._first = done  # when the clock was started
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=quiet or not self._drawn,
            speed_estimate_period=120.0,
        )
        self._bar.add_task(description, start=False, total=total, completed=done, text="")

    def __enter__(self) -> "Bar":
        self._entered = self._started = self._shown = time.monotonic()
        self._bar.start()
        self._bar.start_task(self._bar.tasks[0].id)
        if not self._quiet and _in_a_kernel():
            from IPython.display import display

            self._output = display(self, display_id=True)
        elif not self._drawn:
            self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if not any(error) and not self._drawn:
            self._clock = f"took {format_seconds(time.monotonic() - self._entered)}"
            self._show()

    def update(
        self,
        done: int,
        text: str | None = None,
        total: int | None = None,
        left: float | None = None,
    ) -> None:
        """Show how many steps are done.

        A text or a total that is given holds from now on: where the work comes in several passes,
        each has a total of its own. ``left`` is how many seconds all of them will take, if known.
        """
        self._watch()
        task = self._bar.tasks[0]
        now = time.monotonic()
        if total is not None and (total != task.total or done < task.completed):
            self._first = 0
            self._started = now
        text = task.fields["text"] if text is None else text
        if left and self._drawn:  # beside what is left of the pass
            text = f"{text}, {format_seconds(left)} left in all"
        self._bar.update(task.id, completed=done, total=total, text=text)
        if not left:
            left = (task.remaining or 0) * (now - self._started) / max(done - self._first, 1)
        self._clock = f"{format_seconds(left)} left"
        wait = _REDRAW_EVERY_SECONDS
        if not self._output:
            wait = max(LINE_EVERY_SECONDS, (now - self._entered + left) / 10)
        if not self._drawn and now - self._shown >= wait:
            self._shown = now
            self._show()

    def note(self, line: str) -> None:
        """Print a line above the bar; where there is none on a terminal, it is shown with the next.

        A later note then takes the place of one that was not shown yet.
        """
        if self._drawn:
            self._console.print(line, soft_wrap=True, markup=False)
        else:
            self._note = line

    def _show(self) -> None:
        if self._output:
            self._output.update(self)
        else:
            self._console.print(repr(self), soft_wrap=True, markup=False)

    def __repr__(self) -> str:
        task = self._bar.tasks[0]
        done = f"{task.description} {task.completed:.0f}/{task.total:.0f}"
        return ", ".join(filter(None, [done, self._clock, task.fields["text"], self._note]))

    def _repr_html_(self) -> str:
        task = self._bar.tasks[0]
        bar = f'<progress value="{task.completed:.0f}" max="{task.total:.0f}"></progress>'
        return f"{bar} {html.escape(repr(self))}"


def _in_a_kernel() -> bool:
    """Return whether this process runs the cells of a notebook."""
    module = sys.modules.get("IPython")
    return hasattr(module.get_ipython() if module else None, "kernel")


def _below_a_notebook() -> bool:
    """Return whether a notebook started this process: what looks like a terminal is then a cell."""
    environment = os.environ
    return "JPY_PARENT_PID" in environment or "inline" in environment.get("MPLBACKEND", "")


def format_seconds(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
