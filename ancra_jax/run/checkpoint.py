"""Checkpoints of a run: the latest two and the best, checked when loaded."""

import contextlib
import errno
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from ancra_jax.errors import UsageError
from ancra_jax.ops import files
from ancra_jax.run import sharding, workdir
from ancra_jax.run.averaging import ROBUST_ACCURACY, metric_name
from ancra_jax.urls import AnyPath


class DamagedCheckpointError(UsageError):
    """A checkpoint's files are missing, truncated or changed."""


class Checkpoints:
    """The checkpoints of one run, a directory each, named by step.

    The latest two are kept (if the last one is damaged, there is one to fall back to), and the one
    with the best robust accuracy on the selection split; for averaged weights also the best by
    their accuracy. Of equally good ones the later is kept. Writes are asynchronous and atomic: a
    killed run leaves no half-written checkpoint under a step's name.
    """

    def __init__(
        self,
        directory: files.AnyPathLike,
        *,
        read_only: bool = False,
        weights: Sequence[str] = ("raw",),
    ):
        """Open the directory of all checkpoints; create it unless ``read_only``.

        For each of the ``weights``, names of ``Averaging.weights``, the best checkpoint is kept.
        """
        self.directory = files.as_path(directory).absolute()
        self._manager: Any = None
        if sys.unraisablehook != _report_unraisable:
            _reporters.append(sys.unraisablehook)
            sys.unraisablehook = _report_unraisable
        if read_only:
            return
        if sharding.is_main():
            files.check_writable(self.directory, "--workdir")
            self._mend_metrics()
        sharding.barrier("checkpoints")
        self._open(weights)

    def _open(self, weights: Sequence[str]) -> None:
        """Get ready to write, and to keep the best checkpoint for each of the weights."""
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda saved: saved[ROBUST_ACCURACY],
            best_mode="max",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(2), *map(_keep_best, weights)]
            ),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(
        self,
        step: int,
        state: PyTree,
        metrics: dict[str, float] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Start writing a state, whose arrays every process holds whole, and JSON data beside it.

        A step that is there already is left alone. Without metrics of the selection split the
        checkpoint cannot become the best.
        """
        if step in self._written():
            return
        # Copied to the host first: the next step donates the device's buffers.
        host_state = jax.tree.map(_to_host, state)
        checksums = {
            name: [zlib.crc32(leaf.tobytes()), list(leaf.shape)]
            for name, leaf in named_leaves(host_state)
        }
        with self._writing():
            self._write(step, host_state, {**(extra or {}), "checksums": checksums}, metrics)

    def _written(self) -> Sequence[int]:
        """Return the steps that have a checkpoint, those under way included."""
        return list(self._manager.all_steps())

    def _write(
        self, step: int, state: PyTree, facts: dict[str, Any], metrics: dict[str, float] | None
    ) -> None:
        """Start writing a checkpoint of host arrays."""
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(facts)
        )
        self._manager.save(step, args=arguments, metrics=metrics)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        return sorted(ocp.utils.checkpoint_steps(self.directory) if self.directory.exists() else [])

    def best_step(self, weights: str = "raw") -> int | None:
        """Return the step with the best robust accuracy of the weights, if any was evaluated.

        If a better one was recorded but has no checkpoint, a line says so. Imported weights have a
        single checkpoint, of step 0.
        """
        metric = metric_name(weights, ROBUST_ACCURACY)
        steps = self.steps()
        if steps == [0]:
            return 0
        saved = self._recorded() | {step: self.metrics(step) for step in steps}
        ranked = sorted((found[metric], step) for step, found in saved.items() if metric in found)
        best = max((one for one in ranked if one[1] in steps), default=None)
        if best and best != ranked[-1]:
            print(
                f"warning: {self.directory}: step {ranked[-1][1]} with {metric} "
                f"{ranked[-1][0]:.2%} has no checkpoint; the best there is: step {best[1]}, "
                f"{best[0]:.2%}",
                flush=True,
            )
        return best[1] if best else None

    def metrics(self, step: int) -> dict[str, float]:
        """Return a checkpoint's accuracies on the selection split; none if it was not evaluated.

        Where its own file is damaged, they are taken from the run's metrics.jsonl.

        Raises:
          DamagedCheckpointError: they are in neither, or not the same in both.
        """
        path = self.directory / str(step)
        saved, recorded = self._saved_metrics(step), self._recorded().get(step)
        if saved is None and recorded is None:
            # Checkpoints between the ends of epochs have none.
            description = read_object(path / "_CHECKPOINT_METADATA") or {}
            if "metrics" not in description.get("item_handlers", ["metrics"]):
                return {}
        elif saved is None or recorded is None or saved == recorded:
            return recorded or saved or {}
        raise DamagedCheckpointError(
            f"checkpoint {path}: its metrics are lost or were changed, so that the best is not "
            "known; the command that trained it mends what can be mended"
        )

    def _saved_metrics(self, step: int) -> dict[str, Any] | None:
        """Return the metrics that a checkpoint keeps; None where there are none, or damaged."""
        return read_object(self.directory / f"{step}/metrics/metrics")

    def facts(self, step: int) -> dict[str, Any]:
        """Return the JSON data beside a checkpoint's state.

        Raises:
          DamagedCheckpointError: they are missing or cannot be read.
        """
        path = self.directory / str(step)
        with reading(path), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(path / "extra", args=ocp.args.JsonRestore())

    def restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Load and check the parts of a checkpoint that ``abstract`` names, and its `facts`.

        The leaves of ``abstract`` are ``jax.ShapeDtypeStruct`` with shardings.

        Raises:
          DamagedCheckpointError: files are missing or truncated, or the content differs from what
            was written.
          UsageError: the checkpoint is of another network.
        """
        path = self.directory / str(step)
        facts = self.facts(step)
        with reading(path):
            _check_shapes(path, abstract, facts["checksums"])
            state = self._read(step, abstract)
        for name, leaf in named_leaves(jax.tree.map(_to_host, state)):
            if zlib.crc32(leaf.tobytes()) != facts["checksums"][name][0]:
                raise DamagedCheckpointError(
                    f"checkpoint {path}: {name} is not what was written (its checksum differs)"
                )
        return state, facts

    def _read(self, step: int, abstract: PyTree) -> PyTree:
        """Load the parts of a state that ``abstract`` names."""
        arguments = ocp.args.PyTreeRestore(
            abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(self.directory / f"{step}/state", args=arguments)

    def restore_latest(self, abstract: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Load the latest checkpoint that is whole, as `restore`; None if there is none yet.

        Damaged ones are set aside, saying so; it is an error if all are damaged.
        """
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                restored = self.restore(step, abstract)
            except DamagedCheckpointError as error:
                print(f"warning: {error}; falling back to the checkpoint before it", flush=True)
                damaged.append(step)
                continue
            if damaged:
                for bad in damaged if sharding.is_main() else ():
                    self._set_aside(bad)
                sharding.barrier("damaged checkpoints")
                if self._manager:
                    self._manager.reload()
            return restored
        self._check_any_whole(damaged)
        return None

    def close(self) -> None:
        """Finish all writes."""
        with self._writing():
            if self._manager:
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a full disk makes the writers raise
            full = os.strerror(errno.ENOSPC)
            reason = full if full in str(error) else " ".join(str(error).split())[:200]
            raise UsageError(f"{self.directory}: cannot write a checkpoint: {reason}") from error

    def _recorded(self) -> dict[int, dict[str, float]]:
        """Return accuracies by step from the run's metrics.jsonl."""
        path = self.directory.parent / workdir.METRICS
        return {
            record["step"]: {name: record[name] for name in record if name.endswith("accuracy")}
            for record in files.read_json_lines(path, workdir.is_metric)
            if record["kind"] == "selection"
        }

    def _mend_metrics(self) -> None:
        """Write metrics that are damaged once more, or set their checkpoints aside."""
        damaged = []
        for step in self.steps():
            path = self.directory / f"{step}/metrics/metrics"
            try:
                found = self.metrics(step)
            except DamagedCheckpointError as error:
                print(f"warning: {error}", flush=True)
                damaged.append(step)
                continue
            if found and found != read_object(path):
                print(f"warning: {path}: was damaged; written again from metrics.jsonl", flush=True)
                path.parent.mkdir(exist_ok=True)
                files.write_atomically(path, json.dumps(found))
        self._check_any_whole(damaged)
        for step in damaged:
            self._set_aside(step)

    def _check_any_whole(self, damaged: list[int]) -> None:
        if damaged and len(damaged) == len(self.steps()):
            raise UsageError(
                f"--workdir: every checkpoint in {self.directory} is damaged (steps {damaged}); "
                "move that directory away to train from the start"
            )

    def _set_aside(self, step: int) -> None:
        target = self.directory.with_name(f"{self.directory.name}_damaged")
        target.mkdir(exist_ok=True)
        number = len(list(target.iterdir()))
        os.replace(f"{self.directory}/{step}", f"{target}/{step}.{number}")
        print(f"warning: moved the damaged checkpoint {step} to {target}", flush=True)


_reporters: list[Callable[..., object]] = [sys.unraisablehook]


def _report_unraisable(found: Any) -> None:
    """Report an error of a thread, except those that follow when a file cannot be read or written.

    Orbax works on all files of a checkpoint at once, and leaves at the first error.
    """
    if "Event loop is closed" not in str(found.exc_value):
        _reporters[-1](found)


@contextlib.contextmanager
def reading(path: AnyPath) -> Iterator[None]:
    """Turn whatever a damaged file makes the readers raise into an error on the checkpoint."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedCheckpointError(f"checkpoint {path}: cannot be read: {reason}") from error


def read_object(path: AnyPath) -> dict[str, Any] | None:
    """Return the content of a JSON file; None if it is not there or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _keep_best(weights: str) -> checkpoint_managers.BestN:
    metric = metric_name(weights, ROBUST_ACCURACY)
    # SWA's accuracy is not there before its first epoch.
    return checkpoint_managers.BestN(
        get_metric_fn=lambda saved: saved.get(metric, -math.inf),
        n=1,
        keep_checkpoints_without_metrics=False,
    )


def _check_shapes(path: AnyPath, abstract: PyTree, saved: Mapping[str, Any]) -> None:
    for name, leaf in named_leaves(abstract):
        if name not in saved:
            raise UsageError(
                f"checkpoint {path}: has no {name}; it is of another network or method"
            )
        if list(leaf.shape) != saved[name][1]:
            raise UsageError(
                f"checkpoint {path}: {name} has shape {saved[name][1]}, the configuration's "
                f"network needs {list(leaf.shape)}"
            )


def _to_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        leaf = leaf.addressable_data(0)
    return np.array(leaf)


def named_leaves(tree: PyTree) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a state with their names, ``params/stem/kernel``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf
