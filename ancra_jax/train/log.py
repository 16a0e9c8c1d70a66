"""The numbers of the training steps: fetched together, late, then checked and written."""

import math
import time

import jax

from ancra_jax.cli.progress import Bar
from ancra_jax.config.schema import WEIGHTS, Config
from ancra_jax.errors import NonFiniteLossError
from ancra_jax.methods.core import Metrics
from ancra_jax.run.averaging import NATURAL_ACCURACY, ROBUST_ACCURACY, metric_name
from ancra_jax.train.metrics import MetricsWriter

IN_FLIGHT_STEPS = 2  # dispatched ahead of the device: enough to keep it busy, few to wait for


class TrainingLog:
    """Keeps the metrics of the last steps on the device until they are fetched together."""

    def __init__(
        self, writer: MetricsWriter | None, bar: Bar, config: Config, steps_per_epoch: int
    ):
        """Without a writer, as in all processes but the first, numbers are checked only."""
        self._writer, self._bar = writer, bar
        self._batch_size, self._steps_per_epoch = config.batch_size, steps_per_epoch
        self._epochs = config.epochs
        self._pending: list[tuple[int, Metrics]] = []
        self._since, self._timed = 0.0, 0

    def add(self, step: int, metrics: Metrics):
        """Takes a step's metrics, which may still be under way, and waits for older steps."""
        self._pending.append((step, metrics))
        if len(self._pending) > IN_FLIGHT_STEPS:
            jax.block_until_ready(self._pending[-1 - IN_FLIGHT_STEPS][1])
        self._timed += 1
        if not self._since:  # the first step compiles; it does not count for the rate
            jax.block_until_ready(metrics)
            self._since, self._timed = time.monotonic(), 0
        self._bar.update(step)

    def flush(self):
        """Fetches the metrics, checks each step's and writes their means.

        Raises:
          NonFiniteLossError: a loss or a gradient is infinite or NaN.
        """
        if not self._pending:
            return
        steps, metrics = zip(*self._pending, strict=True)
        self._pending = []
        rows = jax.device_get(metrics)
        for step, row in zip(steps, rows, strict=True):
            _check_finite(step, row)
        means = {name: float(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}
        now = time.monotonic()
        rate = self._timed * self._batch_size / max(now - self._since, 1e-9)
        self._since, self._timed = now, 0
        epoch = (steps[-1] - 1) / self._steps_per_epoch
        self._bar.update(
            steps[-1],
            f"epoch {int(epoch) + 1}/{self._epochs}, loss {means['loss']:.4f}, {rate:.3g} images/s",
        )
        if self._writer:
            values = {"epoch": round(epoch, 4), "images_per_second": rate, **means}
            self._writer.write("train", steps[-1], values)

    def selection(self, step: int, epoch: int, accuracies: dict[str, float]):
        """Prints and writes what was found on the selection split after an epoch."""
        found = []
        for weights in WEIGHTS:
            if (robust := accuracies.get(metric_name(weights, ROBUST_ACCURACY))) is not None:
                natural = accuracies[metric_name(weights, NATURAL_ACCURACY)]
                name = "" if weights == "raw" else f"{weights} "
                found.append(f"{name}natural {natural:.2%}, robust {robust:.2%}")
        self._bar.print(f"epoch {epoch}: {'; '.join(found)} on the selection split")
        if self._writer:
            self._writer.write("selection", step, {"epoch": epoch, **accuracies})
        self._since, self._timed = time.monotonic(), 0


def _check_finite(step, row):
    bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(row[name])]
    if bad:
        raise NonFiniteLossError(
            f"{' and '.join(bad)} not finite at step {step}; the checkpoints from before it are "
            "kept. A smaller config.optimizer.learning_rate may help"
        )
