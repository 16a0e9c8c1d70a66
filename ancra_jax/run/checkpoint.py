"""Checkpoints of a run: the latest two and the best, checked when loaded."""

import math
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from ancra_jax.errors import UsageError
from ancra_jax.run import sharding
from ancra_jax.run.averaging import ROBUST_ACCURACY, metric_name


class DamagedCheckpointError(UsageError):
    """A checkpoint's files are missing, truncated or changed."""


class Checkpoints:
    """The checkpoints of one run, a directory each, named by step.

    Kept are the latest two (if the last one is damaged there is one to fall back to) and the one
    with the best robust accuracy on the selection split (for averaged weights, by their own
    accuracy, another one); of equally good ones the later. Writes are asynchronous and atomic: a
    killed run leaves no half-written checkpoint under a step's name.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        read_only: bool = False,
        weights: Sequence[str] = ("raw",),
    ):
        """Open the directory of all checkpoints; create it unless ``read_only``.

        For each of the ``weights``, names of ``Averaging.weights``, the best checkpoint is kept.
        """
        self.directory = pathlib.Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda saved: saved[ROBUST_ACCURACY],
            best_mode="max",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(2), *map(_keep_best, weights)]
            ),
            read_only=read_only,
        )
        try:
            if not read_only and sharding.is_main():
                self.directory.mkdir(parents=True, exist_ok=True)
            sharding.barrier("checkpoints")
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise UsageError(f"--workdir: cannot use {self.directory}: {error.strerror}") from error

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
        if step in self._manager.all_steps():
            return
        # Copied to the host first: the next step donates the device's buffers.
        host_state = jax.tree.map(_to_host, state)
        checksums = {
            name: [zlib.crc32(leaf.tobytes()), list(leaf.shape)]
            for name, leaf in _named_leaves(host_state)
        }
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(host_state),
            extra=ocp.args.JsonSave({**(extra or {}), "checksums": checksums}),
        )
        self._manager.save(step, args=arguments, metrics=metrics)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self, weights: str = "raw") -> int | None:
        """Return the step with the best robust accuracy of the weights, if any was evaluated."""
        metric = metric_name(weights, ROBUST_ACCURACY)
        saved = {step: self._manager.metrics(step) or {} for step in self.steps()}
        ranked = [(metrics[metric], step) for step, metrics in saved.items() if metric in metrics]
        return max(ranked)[1] if ranked else None

    def restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Load and check the parts of a checkpoint that ``abstract`` names, and its ``extra`` data.

        The leaves of ``abstract`` are ``jax.ShapeDtypeStruct`` with shardings.

        Raises:
          DamagedCheckpointError: files are missing or truncated, or the content differs from what
            was written.
          UsageError: the checkpoint is of another network.
        """
        path = self.directory / str(step)
        try:
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
                extra = reader.restore(path / "extra", args=ocp.args.JsonRestore())
            _check_shapes(path, abstract, extra["checksums"])
            arguments = ocp.args.PyTreeRestore(
                abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            )
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                state = reader.restore(path / "state", args=arguments)
        except UsageError:
            raise
        except Exception as error:  # whatever a damaged file makes the readers raise
            reason = " ".join(str(error).split())[:200]
            raise DamagedCheckpointError(f"checkpoint {path}: cannot be read: {reason}") from error
        for name, leaf in _named_leaves(jax.tree.map(_to_host, state)):
            if zlib.crc32(leaf.tobytes()) != extra["checksums"][name][0]:
                raise DamagedCheckpointError(
                    f"checkpoint {path}: {name} is not what was written (its checksum differs)"
                )
        return state, extra

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
            for bad in damaged:
                self._set_aside(bad)
            return restored
        if damaged:
            raise UsageError(
                f"--workdir: every checkpoint in {self.directory} is damaged (steps {damaged}); "
                "move that directory away to train from the start"
            )
        return None

    def close(self) -> None:
        """Finish all writes."""
        self._manager.close()

    def _set_aside(self, step: int) -> None:
        if sharding.is_main():
            target = self.directory.with_name(f"{self.directory.name}_damaged")
            target.mkdir(exist_ok=True)
            number = len(list(target.iterdir()))
            os.replace(self.directory / str(step), target / f"{step}.{number}")
            print(f"warning: moved the damaged checkpoint {step} to {target}", flush=True)
        sharding.barrier("damaged checkpoint")
        self._manager.reload()


def _keep_best(weights: str) -> checkpoint_managers.BestN:
    metric = metric_name(weights, ROBUST_ACCURACY)
    # SWA's accuracy is not there before its first epoch.
    return checkpoint_managers.BestN(
        get_metric_fn=lambda saved: saved.get(metric, -math.inf),
        n=1,
        keep_checkpoints_without_metrics=False,
    )


def _check_shapes(path: pathlib.Path, abstract: PyTree, saved: Mapping[str, Any]) -> None:
    for name, leaf in _named_leaves(abstract):
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


def _named_leaves(tree: PyTree) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf
