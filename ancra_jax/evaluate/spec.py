"""What the attacks of an evaluation share: the model, the examples, the state, the result."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ancra_jax.attacks.job import PRECISIONS, Progress, default_batch_size, precision_of
from ancra_jax.attacks.saved_state import StateError
from ancra_jax.attacks.validation import NotFiniteError
from ancra_jax.cli.progress import Bar
from ancra_jax.data import Split
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import AnyPath, remove_tree
from ancra_jax.ops.hosts import ALONE, Share
from ancra_jax.results.store import ResultStore
from ancra_jax.types import Outputs

Arrays = dict[str, np.ndarray]
Model = Callable[..., Outputs]


class Target(NamedTuple):
    """What an evaluation attacks."""

    model: Model  # the network in the evaluation phase, with a checkpoint's variables; a pytree
    split: Split  # the test split, on the host
    batch_size: int  # examples on the devices at a time, a multiple of the number of devices
    sharding: jax.sharding.Sharding  # of a batch over the devices
    classes: tuple[str, ...] = ()  # their names
    share: Share = ALONE  # of each batch, of this process


@dataclass(frozen=True)
class Task:
    """One attack on the first examples of the test split."""

    target: Target
    identity: dict[str, Any]  # what determines the numbers; see ``ResultStore``
    partial: AnyPath  # the file of an unfinished attack that keeps one array file
    labels: Int[np.ndarray, "examples"]
    key: Key[Array, ""]  # the source of all randomness
    bar: Bar  # is told where the attack stands

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the attack."""
        return self.identity["settings"]

    @property
    def search_precision(self) -> str:
        """The precision of products in the attack's search, see ``attacks.autoattack``."""
        return self.identity.get("search_precision", "highest")

    @property
    def images(self) -> Float[np.ndarray, "examples height width channels"]:
        """The images, pixels in [0, 1]."""
        pixels = self.target.split.images[: len(self.labels)]
        return np.divide(pixels, np.float32(255), dtype=np.float32)

    @property
    def state(self) -> AnyPath:
        """The directory of an unfinished attack that keeps more files."""
        return self.partial.with_suffix(".state")

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that AutoAttack, the adaptive attacks and the diagnostics share."""
        return {
            "model": self.target.model,
            "images": self.images,
            "labels": self.labels,
            "norm": self.settings["norm"],
            "epsilon": self.settings["epsilon"],
            "key": self.key,
            # Batches hold only what is still robust: small ones have less padding.
            "batch_size": min(self.target.batch_size, default_batch_size()),
            "state_path": str(self.state),
            "progress": self.show,
        }

    def show(self, progress: Progress) -> None:
        """Tell the bar where the attack stands."""
        self.bar.update(
            progress.done,
            f"{progress.attack} {progress.round}/{progress.rounds}, "
            f"robust accuracy {progress.robust_accuracy:.2%}",
            total=progress.todo,
            left=progress.remaining,
        )


class Spec(NamedTuple):
    """An attack of a suite."""

    name: str  # file name of the result
    settings: dict[str, Any]  # what determines the numbers, as the result file keeps it
    # Attacks the examples of a task. Interrupted, the attack continues from its state; the numbers
    # do not depend on that. Returns arrays with one entry per example, ``correct`` among them, and
    # further entries of the result's JSON file.
    run: Callable[[Task], tuple[Arrays, dict[str, Any]]]
    searches: bool = True  # for adversarial images, in a precision of its own

    def record(
        self, identity: dict[str, Any], precision: str = "auto", store: ResultStore | None = None
    ) -> dict[str, Any]:
        """Return what determines the numbers of a result, given what all attacks have in common.

        A ``precision`` of ``'auto'`` is that of the result which ``store`` has, even if it is not
        finished: what is there is neither computed again nor mixed with another.
        """
        identity = {"attack": self.name, **identity, "settings": self.settings}
        if not self.searches:
            return identity
        chosen = precision_of(precision)
        records = [
            identity | {"search_precision": one}
            for one in (chosen, *PRECISIONS[1:])
            if one == chosen or precision == "auto"
        ]
        return next((one for one in records if store and store.begun(one)), records[0])


def compute(
    spec: Spec,
    target: Target,
    store: ResultStore,
    identity: dict[str, Any],
    *,
    force: bool,
    precision: str = "auto",
    watch: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return the JSON of an attack's result; compute it if it is missing, or if ``force`` says so.

    ``identity`` is what determines the numbers, except the attack and its settings. A result of
    another identity, or an interrupted attack's unusable state, raises a `UsageError`.
    ``precision`` is that of ``Spec.record``; ``watch`` is called after every batch.
    """
    share = target.share
    identity = share.from_first(partial(spec.record, identity, precision, None if force else store))
    if not force and (finished := share.from_first(lambda: store.finished(identity))):
        return finished
    started = time.monotonic()
    labels = target.split.labels[: identity["num_examples"]]
    with Bar(spec.name, len(labels), quiet=not share.is_first, watch=watch) as bar:
        key = jax.random.key(identity["seed"])
        task = Task(target, identity, store.partial_path(identity), labels, key, bar)
        try:
            # What judges computes in float32, whatever the precision of the searches.
            with jax.default_matmul_precision("highest"):
                arrays, more = spec.run(task)
        except (StateError, NotFiniteError) as error:
            raise UsageError(str(error)) from error
    seconds = time.monotonic() - started
    result = share.from_first(lambda: store.write(identity, arrays, seconds, **more))
    if result.get("complete", True) and share.is_first:
        task.partial.unlink(missing_ok=True)
        remove_tree(task.state)
    return result
