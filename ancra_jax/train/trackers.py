"""Trackers: what else is told of a run's metrics while it trains, such as Weights & Biases.

A tracker of one's own is a function ``(config, workdir) -> Tracker``, named to the command with
``--tracker=module:function``, or an object, given to ``train.run(..., trackers=[...])``.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError, printable
from ancra_jax.ops.extras import MissingExtraError, explained
from ancra_jax.registry import did_you_mean

NAMES = {"wandb": "ancra_jax.train.weights_and_biases:WandbRun"}


@runtime_checkable
class Tracker(Protocol):
    """What is told of a run's metrics; an error of it costs a warning, never the training."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step, ``{'train/loss': 2.3, ...}``; steps never go back."""

    def close(self) -> None:
        """Write what was not written: the training ends, or stops to be continued."""


Factory = Callable[[Config, str], Tracker]
"""Opens a tracker for a run in a work directory, which an earlier start may have left there."""


def find(tracker: Tracker | str) -> tuple[str, Factory]:
    """Return what a tracker is called, and what opens it.

    Args:
      tracker: an open one; or one of ``NAMES``, or ``'module:function'``.

    Raises:
      UsageError: there is no such thing, or an extra is missing.
    """
    if not isinstance(tracker, str):
        return type(tracker).__name__, lambda config, workdir: tracker
    module, colon, name = NAMES.get(tracker, tracker).partition(":")
    if not (module and colon and name):
        raise UsageError(
            f"--tracker={tracker}: {did_you_mean(tracker, NAMES)}allowed are {', '.join(NAMES)} "
            "and module:function"
        )
    try:
        with explained():
            return tracker, getattr(importlib.import_module(module), name)
    except MissingExtraError:
        raise
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--tracker={tracker}: {error}") from error


class Trackers:
    """The trackers of a run; one that fails is left out from then on, with one line of warning."""

    def __init__(self, found: Sequence[tuple[str, Factory]], config: Config, workdir: str):
        """Open what `find` has found."""
        self._open: dict[int, tuple[str, Tracker]] = {}
        for number, (name, factory) in enumerate(found):
            with self._surviving(number, name):
                self._open[number] = name, factory(config, workdir)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Tell all of them the numbers of a step."""
        for number, (name, tracker) in list(self._open.items()):
            with self._surviving(number, name):
                tracker.log(metrics, step)

    def close(self) -> None:
        """Close all of them."""
        for number, (name, tracker) in list(self._open.items()):
            with self._surviving(number, name):
                tracker.close()

    @contextlib.contextmanager
    def _surviving(self, number: int, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever somebody else's code raises
            self._open.pop(number, None)
            what = printable(f"{type(error).__name__}: {error}")
            print(f"warning: tracker {name}: {what}; the run goes on without it", flush=True)
