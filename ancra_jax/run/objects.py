"""Checkpoints in a bucket: two objects each, the arrays and then what is known of them.

Orbax renames directories, and supports the stores of only some clouds. In any store an object is
there whole or not at all, so nothing has to be renamed here. A directory of such objects that was
copied to this machine is used as it is.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ancra_jax.errors import UsageError
from ancra_jax.ops import files
from ancra_jax.run import sharding
from ancra_jax.run.averaging import ROBUST_ACCURACY, metric_name
from ancra_jax.run.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    named_leaves,
    read_object,
)
from ancra_jax.urls import is_url


def open_checkpoints(
    workdir: str, *, read_only: bool = False, weights: Sequence[str] = ("raw",)
) -> Checkpoints:
    """Open the checkpoints of a run, wherever they are; see `Checkpoints`.

    Raises:
      UsageError: a run was copied to a bucket that was trained on a disk; or as `Checkpoints`.
    """
    directory = files.as_path(workdir) / "checkpoints"
    remote = is_url(workdir)
    if remote and directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir()):
        raise UsageError(
            f"{directory}: holds checkpoints that were written on a disk; copy the run to this "
            "machine, and use it there"
        )
    kind = ObjectCheckpoints if remote or any(directory.glob("*.npz")) else Checkpoints
    return kind(directory, read_only=read_only, weights=weights)


class ObjectCheckpoints(Checkpoints):
    """The checkpoints of one run, ``12.npz`` and ``12.json`` that of step 12.

    The second is written last, and removed first: it says that the first is whole.
    """

    def _open(self, weights: Sequence[str]) -> None:
        self._weights = weights

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        names = [path.stem for path in self.directory.glob("*.json")]
        return sorted(int(name) for name in names if name.isdigit())

    _written = steps

    def _write(
        self, step: int, state: PyTree, facts: dict[str, Any], metrics: dict[str, float] | None
    ) -> None:
        if not sharding.is_main():
            return
        leaves = dict(named_leaves(state))
        save = partial(np.savez, allow_pickle=False, **leaves)
        files.write_atomically(self.directory / f"{step}.npz", save)
        about = json.dumps({"metrics": metrics or {}, "facts": facts})
        files.write_atomically(self.directory / f"{step}.json", about)
        steps = self.steps()
        kept = {*steps[-2:], *map(self._best, self._weights)}
        for old in {*steps} - kept:
            (self.directory / f"{old}.json").unlink()
            (self.directory / f"{old}.npz").unlink(missing_ok=True)

    def _best(self, weights: str) -> int | None:
        metric = metric_name(weights, ROBUST_ACCURACY)
        saved = {step: self._saved_metrics(step) or {} for step in self.steps()}
        return max(
            (step for step in saved if metric in saved[step]),
            key=lambda step: (saved[step][metric], step),
            default=None,
        )

    def _saved_metrics(self, step: int) -> dict[str, Any] | None:
        return (read_object(self.directory / f"{step}.json") or {}).get("metrics")

    def facts(self, step: int) -> dict[str, Any]:
        """Return the JSON data of a checkpoint.

        Raises:
          DamagedCheckpointError: they are missing or cannot be read.
        """
        path = self.directory / f"{step}.json"
        about = read_object(path)
        if not about or not isinstance(about.get("facts"), dict):
            raise DamagedCheckpointError(f"checkpoint {path}: cannot be read")
        facts: dict[str, Any] = about["facts"]
        return facts

    def _read(self, step: int, abstract: PyTree) -> PyTree:
        wanted = [name for name, _ in named_leaves(abstract)]
        try:
            arrays = files.read_arrays(self.directory / f"{step}.npz", wanted)
        except UsageError as error:
            raise DamagedCheckpointError(f"checkpoint {error}") from error

        def place(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            array = arrays[name].astype(leaf.dtype)
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)

        leaves = [place(name, leaf) for name, leaf in named_leaves(abstract)]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def _mend_metrics(self) -> None:
        """Remove arrays that a killed process left without the object that says they are whole."""
        for path in self.directory.glob("*.npz"):
            if not path.with_suffix(".json").exists():
                path.unlink()

    def _set_aside(self, step: int) -> None:
        target = self.directory.with_name(f"{self.directory.name}_damaged")
        number = len(list(target.glob(f"{step}.*.json")))
        target.mkdir(exist_ok=True)
        for ending in ("json", "npz"):
            path = self.directory / f"{step}.{ending}"
            if path.exists():
                files.write_atomically(target / f"{step}.{number}.{ending}", path.read_bytes())
                path.unlink()
        print(f"warning: moved the damaged checkpoint {step} to {target}", flush=True)
