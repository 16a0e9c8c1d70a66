"""What a long evaluation works on: the model, the examples and the devices, batch by batch."""

import hashlib
import json
import math
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ancra_jax.attacks import arguments
from ancra_jax.attacks.arguments import AnyKey
from ancra_jax.attacks.loop import MANY_PASSES
from ancra_jax.attacks.model import Model, WithKeys, as_pytree, example_keys, forward, judge
from ancra_jax.attacks.threat_models import ThreatModel
from ancra_jax.attacks.validation import AttackResult, check_finite, check_threat_model
from ancra_jax.ops.files import AnyPath, as_path
from ancra_jax.ops.hosts import ALONE, Share, share_of
from ancra_jax.ops.images import Images, Labels, Values
from ancra_jax.ops.per_device import batches_of
from ancra_jax.ops.target import platform

CLEAN = "clean"  # in place of an attack's name: the natural image
ROBUST = ""  # in place of an attack's name: no attack broke the example
PRECISIONS = ("auto", "highest", "high", "default")
"""Precisions of the matrix products in a search. ``'high'`` is TF32 on GPUs and three passes of
bfloat16 on TPUs, ``'default'`` TF32 and one pass, ``'highest'`` float32. On CPUs all are
float32."""
_PROBED = 8  # natural images whose logits tell one model from another
_FEWEST_ROWS = 8  # of an attack's last batch, where it may be smaller than the others

Arrays = dict[str, np.ndarray]
Known = Mapping[str, Arrays]
HostImages = Float[np.ndarray, "examples height width channels"]
Numbers = Int[np.ndarray, "_"]
Run = Callable[..., AttackResult]
"""``run(model, images, labels, threat_model, *, key, indices, active, targets)``; ``targets`` only
where there are any."""


@dataclass(frozen=True)
class Placement:
    """How a batch is spread: its first axis over all devices; everything else is on each of them.

    With several processes, each puts its share of the rows on its own devices.
    """

    batch_size: int  # rows of every batch, a multiple of the number of devices
    rows: Sharding  # of arrays over the batch
    replicated: Sharding  # of everything else
    share: Share = ALONE

    @classmethod
    def over(cls, devices: Sequence[jax.Device], batch_size: int, examples: int) -> "Placement":
        """Plan batches of equal size, as few as ``batch_size`` allows, so that padding is rare.

        Their size is a multiple of the number of devices.
        """
        share, own = share_of(devices)
        number = math.ceil(examples / batch_size)
        size = math.ceil(examples / number / len(devices)) * len(devices)
        if len(own) == 1:
            only = SingleDeviceSharding(own[0])
            return cls(size, only, only, share)
        axis = {"axis_types": (AxisType.Auto,), "devices": tuple(own)}
        mesh = jax.make_mesh((len(own),), ("data",), **axis)
        rows, everywhere = PartitionSpec("data"), PartitionSpec()
        return cls(size, NamedSharding(mesh, rows), NamedSharding(mesh, everywhere), share)

    def smaller(self, examples: int) -> "Placement":
        """Return the same devices for batches of no more than so many examples."""
        devices = self.rows.num_devices * self.share.count
        size = min(self.batch_size, math.ceil(examples / devices) * devices)
        return replace(self, batch_size=size)

    def place(self, rows: PyTree) -> PyTree:
        """Put arrays over the batch on the devices, this process' rows of them."""
        return jax.device_put(jax.tree.map(self.share.own, rows), self.rows)

    def fetch(self, tree: PyTree) -> PyTree:
        """Return arrays over the batch as NumPy's, with the rows of all processes."""
        return self.share.gather(tree)

    def replicate(self, tree: PyTree) -> PyTree:
        """Put a pytree on every device."""
        return jax.device_put(tree, self.replicated)

    def batches(
        self, examples: Numbers, passes: float | int = 1
    ) -> Iterator[tuple[Numbers, Bool[np.ndarray, "batch"]]]:
        """Cut example numbers into batches; ``passes`` are an attack's forward passes of a row.

        Yields:
          ``(rows, active)``: example numbers, a batch of too few padded with its first one, and
          which of them are not padding. On CPU an attack of many passes is worth another
          compilation: its last batches may have a half or a quarter of the rows.
        """
        sizes = [self.batch_size]
        if passes >= MANY_PASSES and platform() == "cpu":
            halves = (self.smaller(-(-self.batch_size // part)).batch_size for part in (2, 4))
            sizes += [size for size in halves if size >= _FEWEST_ROWS]
        for rows, count in batches_of(examples, sizes):
            yield rows, np.arange(len(rows)) < count


def checked_devices(devices: Any) -> list[jax.Device]:
    """Return the devices, all if None; refuse anything else with a TypeError or ValueError."""
    found = jax.devices() if devices is None else devices
    listed = list(found) if isinstance(found, Sequence | np.ndarray) else []
    if not listed or len(set(map(id, listed))) < len(listed):
        raise ValueError(f"devices={arguments.shown(devices)}: expected a list of jax.devices()")
    if not all(isinstance(device, jax.Device) for device in listed):
        raise TypeError(f"devices={arguments.shown(devices)}: expected a list of jax.devices()")
    return listed


def checked_path(path: Any, name: str, expected: str) -> AnyPath | None:
    """Return a path that the user may have given; a TypeError says what was ``expected``."""
    try:
        return None if path is None else as_path(path)
    except TypeError:
        raise TypeError(f"{name}={arguments.shown(path)}: expected a path of {expected}") from None


def checked_outputs(
    state_path: Any,
    progress: Any,
    matmul_precision: Any,
    max_seconds: Any = None,
    log_path: Any = None,
) -> AnyPath | None:
    """Check where an evaluation reports, and how it runs; return the path of its state."""
    log = checked_path(log_path, "log_path", "a file")
    if isinstance(log, pathlib.Path) and log.is_dir():
        raise ValueError(f"log_path={log}: expected a path of a file, this is a directory")
    if max_seconds is not None:
        arguments.as_number(max_seconds, "max_seconds", closed=True)
    if progress is not None:
        arguments.check_callable(progress, "progress", "a function, or None")
    try:
        jax.default_matmul_precision(matmul_precision)
    except (ValueError, TypeError):
        given = arguments.shown(matmul_precision)
        raise ValueError(
            f"matmul_precision={given}: allowed is what jax.default_matmul_precision takes, such "
            "as 'highest'"
        ) from None
    return checked_path(state_path, "state_path", "a directory")


def precision_of(name: str | None, judging: str = "highest") -> str:
    """Return the precision in which attacks search, for one of `PRECISIONS`.

    For ``'auto'`` and None it is that of the forward passes that judge.

    Raises:
      ValueError: there is no such precision.
    """
    if name is None:
        return judging
    arguments.check_one_of(name, "search_precision", PRECISIONS)
    return judging if name == "auto" else name


def _judging_precision() -> str:
    config: Any = jax.config  # its attributes are added where JAX defines them
    return config.jax_default_matmul_precision or "default"


def default_batch_size() -> int:
    """Return 256 on accelerators, 32 on CPU.

    The examples that are still robust seldom fill a batch. On CPU a row of padding costs as much as
    any other, while in a batch of 64 each row costs only a tenth less.
    """
    return 32 if platform() == "cpu" else 256


class Batch(NamedTuple):
    """Some examples on the devices, padded to the shape that all batches have.

    With several processes, each has its share of the rows on its devices.
    """

    examples: Numbers  # without padding; on the host
    rows: Numbers  # the example in every row, where padding repeats the first; on the host
    images: Images
    labels: Labels
    indices: Labels  # in the data set
    active: Bool[Array, "batch"]  # which rows are not padding


@dataclass(frozen=True)
class Job:
    """What is attacked, and where it is computed."""

    model: Model  # on all devices
    images: HostImages  # natural, in [0, 1]
    labels: Numbers
    indices: Numbers  # in the data set
    threat_model: ThreatModel
    key: Key[Array, ""]  # source of all randomness
    placement: Placement  # shape of batches, and the devices
    randomized: bool  # whether the model takes a key
    num_steps: int  # gradient steps of APGD
    probe: Float[np.ndarray, "probed classes"]  # logits of the first few natural images
    search_precision: str  # of products in what attacks compute

    @classmethod
    def create(
        cls,
        model: Model,
        images: Any,
        labels: Any,
        indices: Any,
        threat_model: ThreatModel,
        key: AnyKey | None,
        devices: Sequence[jax.Device] | None,
        batch_size: int | None,
        randomized: bool,
        num_steps: int,
        search_precision: str | None = None,
    ) -> "Job":
        """Check the arguments that long evaluations share, and put the model on the devices.

        Takes arguments as the user gave them, and defaults for those that are None.

        Raises:
          ValueError, TypeError: bad arguments, or logits that are not finite.
        """
        images = np.asarray(arguments.as_images(images))
        check_threat_model(threat_model, images)
        examples = len(images)
        numbers = np.arange(examples) if indices is None else indices
        labels = np.asarray(arguments.as_classes(labels, examples))
        batch_size = default_batch_size() if batch_size is None else batch_size
        batch_size = arguments.as_whole(batch_size, "batch_size")
        placement = Placement.over(checked_devices(devices), batch_size, examples)
        job = cls(
            model=placement.replicate(as_pytree(model)),
            images=images,
            labels=labels,
            indices=np.asarray(arguments.as_classes(numbers, examples, name="indices")),
            threat_model=threat_model,
            key=arguments.as_key(0 if key is None else key),
            placement=placement,
            randomized=arguments.as_flag(randomized, "randomized"),
            num_steps=arguments.as_whole(num_steps, "num_steps"),
            probe=np.zeros((0, 0), np.float32),
            search_precision=precision_of(search_precision, _judging_precision()),
        )
        job = replace(job, probe=job.logits_of(np.arange(min(_PROBED, examples))))
        arguments.as_classes(labels, examples, job.num_classes)
        return job

    @property
    def num_classes(self) -> int:
        """The number of the model's classes."""
        return self.probe.shape[1]

    def fingerprint(self, **settings: Any) -> str:
        """Return a digest of everything but the model that decides the result, and ``settings``."""
        settings |= {
            "epsilon": float(self.threat_model.epsilon),
            "norm": type(self.threat_model).__name__.lower(),
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "randomized": self.randomized,
        }
        judging = _judging_precision()
        if judging != "highest":
            settings["matmul_precision"] = judging
        if self.search_precision != judging:
            settings["search_precision"] = self.search_precision
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for array in (self.images, self.labels, self.indices):
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def searching(self) -> AbstractContextManager:
        """Return the context that sets the precision of the attacks' searches."""
        return jax.default_matmul_precision(self.search_precision)

    def purpose_key(self, purpose: str, number: int) -> Key[Array, ""]:
        """Return the key of an attack's pass, which no other attack of the list changes."""
        key = jax.random.fold_in(self.key, zlib.crc32(purpose.encode()))
        return jax.random.fold_in(key, number)

    def keys(self, purpose: str, batch: Batch, number: int = 0) -> Key[Array, "batch"]:
        """Return a key for every row of a batch; see ``purpose_key``."""
        return example_keys(self.purpose_key(purpose, number), batch.indices)

    def batches(self, examples: Numbers, passes: float | int = 1) -> Iterator[Batch]:
        """Cut examples, given by their numbers, into batches and put these on the devices.

        ``passes``: see ``Placement.batches``.
        """
        for rows, active in self.placement.batches(examples, passes):
            arrays = (self.images[rows], self.labels[rows], self.indices[rows], active)
            yield Batch(rows[active], rows, *self.placement.place(arrays))

    def over_batches(
        self, compute: Callable[[Batch], Mapping[str, Any]], examples: Numbers | None = None
    ) -> Arrays:
        """Compute arrays batch by batch, over all examples or with zeros for those not chosen."""
        arrays: Arrays = {}
        for batch in self.batches(np.arange(len(self.images)) if examples is None else examples):
            for name, computed in compute(batch).items():
                values = self.placement.fetch(computed)[: len(batch.examples)]
                shape = (len(self.images), *values.shape[1:])
                arrays.setdefault(name, np.zeros(shape, values.dtype))[batch.examples] = values
        return arrays

    def attack(
        self, run: Run, name: str, batch: Batch, number: int = 0, targets: Numbers | None = None
    ) -> tuple[AttackResult, Bool[Array, "batch"], Values, Labels]:
        """Run one pass of an attack on a batch, and judge its images by a fresh forward pass.

        The attack's name and the pass's number decide its randomness; ``targets`` are the class
        numbers of all examples, for a targeted attack.

        Returns:
          What the attack says; which of its images are adversarial; the perturbations' norms; the
          predicted classes.
        """
        images, labels = batch.images, batch.labels
        aimed = {} if targets is None else {"targets": self.placement.place(targets[batch.rows])}
        key = self.purpose_key(name, number)
        common = {"key": key, "indices": batch.indices, "active": batch.active}
        with self.searching():
            found = run(self.model, images, labels, self.threat_model, **common, **aimed)
        model = self.judging_model(name, batch, number)
        return found, *judge(model, found.images, images, labels, self.threat_model)

    def judging_model(self, purpose: str, batch: Batch, number: int = 0) -> Model:
        """Return the model for a fresh forward pass, with its own randomness if it has any."""
        if not self.randomized:
            return self.model
        return WithKeys(self.model, self.keys(f"judge {purpose}", batch, number))

    def natural_logits(self, batch: Batch) -> Float[np.ndarray, "examples classes"]:
        """Return the logits of a batch's natural images, without padding, on the host.

        Raises:
          ValueError: they are not finite.
        """
        logits = self.placement.fetch(forward(self.judging_model(CLEAN, batch), batch.images))
        logits = logits[: len(batch.examples)]
        check_finite(logits, batch.examples)
        return logits

    def logits_of(self, examples: Numbers) -> Float[np.ndarray, "examples classes"]:
        """Return the logits of natural images given by their numbers; see ``natural_logits``."""
        return np.concatenate([self.natural_logits(batch) for batch in self.batches(examples)])


class Progress(NamedTuple):
    """Where an evaluation stands, after every batch.

    Attributes:
      attack: name of the attack; 'clean' while natural images are classified.
      round: number of its pass (restart or target) among ``rounds``, from 1.
      rounds: how many passes it has.
      done: examples that this pass has treated.
      todo: examples that it treats in all.
      robust_accuracy: share of all examples that nothing has broken so far.
      seconds: since the call.
      remaining: an estimate of the seconds that are left, at the pace so far; too long rather than
        too short, since examples that are broken meanwhile are not attacked again. None while
        natural images are classified.
    """

    attack: str
    round: int
    rounds: int
    done: int
    todo: int
    robust_accuracy: float
    seconds: float
    remaining: float | None = None


def print_progress(progress: Progress) -> None:
    """Write progress to stderr: one line that is rewritten, or one line per pass in a log.

    With several processes, only the first writes.
    """
    last = progress.done == progress.todo
    live = sys.stderr.isatty()
    if jax.process_index() or not (live or last):
        return
    line = (
        f"{progress.attack} {progress.round}/{progress.rounds}: "
        f"{progress.done}/{progress.todo} attacked, "
        f"robust accuracy {progress.robust_accuracy:.2%}, {progress.seconds:.1f} s"
    )
    if progress.remaining:
        line += f", {progress.remaining:.0f} s left"
    print(f"\r{line:<78}" if live else line, end="\n" if last else "", file=sys.stderr, flush=True)
