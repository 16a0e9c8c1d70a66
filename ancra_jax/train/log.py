"""The numbers of a run: fetched together, late, then checked, shown and written."""

import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import register_writer_factory
from tensorboardX.summary import scalar

from ancra_jax.cli.progress import Bar
from ancra_jax.config.schema import WEIGHTS, Config
from ancra_jax.errors import NonFiniteLossError
from ancra_jax.methods.core import Metrics
from ancra_jax.ops import files
from ancra_jax.run import sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.averaging import NATURAL_ACCURACY, ROBUST_ACCURACY, metric_name
from ancra_jax.train.trackers import Trackers
from ancra_jax.urls import is_url

IN_FLIGHT_STEPS = 2  # dispatched ahead of the device: enough to keep it busy, few to wait for


class TrainingLog:
    """Keeps the metrics of the last steps on the devices until they are fetched together.

    Use as a context manager. Of several processes each checks the numbers; the first shows them,
    and writes them to ``metrics.jsonl``, to TensorBoard and to trackers.
    """

    def __init__(
        self,
        config: Config,
        workdir: str,
        first_step: int,
        last_step: int,
        steps_per_epoch: int,
        unwritten: Sequence[Mapping[str, float]] = (),
        trackers: Trackers | None = None,
    ):
        """Open the files of a work directory, which exists, to go on after ``first_step``.

        What an earlier attempt wrote after that step is dropped, so that every step is there once.
        ``unwritten`` is the value that the property had when the checkpoint of that step was saved.
        The trackers are not closed.
        """
        self._config = config
        self._trackers = trackers
        self._steps_per_epoch = steps_per_epoch
        self._is_main = sharding.is_main()
        self._bar = Bar(config.name, last_step, first_step, quiet=not self._is_main)
        self._pending: list[tuple[int, Metrics]] = []
        self._rows = [{name: np.float32(row[name]) for name in row} for row in unwritten]
        self._since = 0.0  # when the clock for the rate was started
        self._timed = 0  # steps since then
        if self._is_main:
            self._path = files.as_path(workdir) / workdir_lib.METRICS
            files.set_lines_aside(
                self._path,
                lambda record: record["step"] <= first_step,
                f"of steps after {first_step}, which are computed again",
            )
            self._shown = files.as_path(workdir) / "tensorboard"
            files.check_writable(self._shown, "--workdir")
            if is_url(workdir):
                register_writer_factory(workdir.partition(":")[0], _Events)
            # Written by this thread, which sees the errors; no two starts share a file.
            self._events = EventsWriter(str(self._shown / "events"), f".{os.getpid()}.{first_step}")
            # TensorBoard leaves out what an earlier attempt wrote after the first step.
            again = SessionLog(status=SessionLog.START)
            self._event(first_step + 1, session_log=again)

    def __enter__(self) -> "TrainingLog":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)
        if self._is_main:
            with files.naming(self._shown):
                self._events.close()

    def add(self, step: int, metrics: Metrics) -> None:
        """Take a step's metrics, which may still be under way, and wait for older steps."""
        self._pending.append((step, metrics))
        if len(self._pending) > IN_FLIGHT_STEPS:
            jax.block_until_ready(self._pending[-1 - IN_FLIGHT_STEPS][1])
        self._timed += 1
        if not self._since:  # the first step compiles; it does not count for the rate
            jax.block_until_ready(metrics)
            self._restart_clock()
        self._bar.update(step)

    def fetch(self) -> None:
        """Fetch the metrics of the steps since the last call, and check each step's.

        Raises:
          NonFiniteLossError: a loss or a gradient is infinite or NaN.
        """
        steps = [step for step, _ in self._pending]
        rows = jax.device_get([metrics for _, metrics in self._pending])
        self._pending = []
        for step, row in zip(steps, rows, strict=True):
            if bad := [name for name in ("loss", "gradient_norm") if not math.isfinite(row[name])]:
                raise NonFiniteLossError(
                    f"{' and '.join(bad)} not finite at step {step}; the checkpoints from before "
                    "it are kept. A smaller config.optimizer.learning_rate may help"
                )
            self._rows.append({name: np.float32(row[name]) for name in row})

    @property
    def unwritten(self) -> list[dict[str, float]]:
        """The metrics of each step since the last record; a checkpoint keeps them.

        So the records of a run that was stopped between two of them are those of an uninterrupted
        one.
        """
        return [{name: float(row[name]) for name in row} for row in self._rows]

    def record(self, step: int) -> None:
        """Write the means of the metrics since the last record, which were fetched."""
        rows, self._rows = self._rows, []
        means = {name: float(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}
        elapsed = max(time.monotonic() - self._since, 1e-9)
        rate = self._timed * self._config.batch_size / elapsed
        self._restart_clock()
        epoch = step / self._steps_per_epoch  # 1 at the end of the first
        self._bar.update(
            step,
            f"epoch {math.ceil(epoch)}/{self._config.epochs}, loss {means['loss']:.4f}, "
            f"{rate:.3g} images/s",
        )
        values = {"epoch": round(epoch, 4), "images_per_second": rate, **means}
        self._write("train", step, values)

    def save(self) -> None:
        """Write what TensorBoard is to show to the disk, before a checkpoint of the same step."""
        if self._is_main:
            with files.naming(self._shown):
                self._events.flush()

    def selection(self, step: int, epoch: int, accuracies: dict[str, float]) -> None:
        """Show and write what was found on the selection split after an epoch."""
        found = []
        for weights in WEIGHTS:
            if (robust := accuracies.get(metric_name(weights, ROBUST_ACCURACY))) is not None:
                natural = accuracies[metric_name(weights, NATURAL_ACCURACY)]
                name = "" if weights == "raw" else f"{weights} "
                found.append(f"{name}natural {natural:.2%}, robust {robust:.2%}")
        self._bar.note(f"epoch {epoch}: {'; '.join(found)} on the selection split")
        self._write("selection", step, {"epoch": epoch, **accuracies})
        self._restart_clock()

    def _write(self, kind: str, step: int, values: dict[str, float | int]) -> None:
        """Record numbers of one kind (``'train'``, ``'selection'``) at a step."""
        if self._is_main:
            files.append_json_line(self._path, {"kind": kind, "step": step, **values})
            for name, value in values.items():
                self._event(step, summary=scalar(f"{kind}/{name}", value))
            if self._trackers:
                told = {f"{kind}/{name}": float(value) for name, value in values.items()}
                self._trackers.log(told, step)

    def _event(self, step: int, **content: Any) -> None:
        """Write an event for TensorBoard."""
        with files.naming(self._shown):
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    def _restart_clock(self) -> None:
        self._since = time.monotonic()
        self._timed = 0


class _Events:
    """Events at an address, for tensorboardX: an object that is written again by every flush."""

    def __init__(self, url: str):
        self._path, self._contents = files.as_path(url), b""

    open = classmethod(lambda cls, url: cls(url))

    def write(self, contents: bytes) -> None:
        self._contents += contents

    def flush(self) -> None:
        self._path.write_bytes(self._contents)

    def close(self) -> None:
        """Do nothing: it was flushed before."""


def tell_missing(workdir: str, steps: Collection[int]) -> None:
    """Say which of the steps, at whose ends a record was written, have none in metrics.jsonl."""
    path = files.as_path(workdir) / workdir_lib.METRICS
    records = files.read_json_lines(path)
    if missing := set(steps) - {record["step"] for record in records if record["kind"] == "train"}:
        print(
            f"warning: {path}: the records of training up to step "
            f"{', '.join(map(str, sorted(missing)))} are missing; the run goes on without them",
            flush=True,
        )
