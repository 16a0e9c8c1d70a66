"""Batches: training images live on the devices, shuffled and augmented there under jit.

Training drops the last, short batch of an epoch; evaluation pads it and says which examples are
real. All randomness derives from the run's key, the step and positions in the data set.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32, Key, UInt8

from ancra_jax.data.augmentation import Augmentation, augment
from ancra_jax.data.dataset import Split
from ancra_jax.errors import UsageError
from ancra_jax.ops.hosts import ALONE, Share
from ancra_jax.types import Batch

# ---- Splits on the devices ----


class DeviceSplit(NamedTuple):
    """A split in device memory: pixels in 0..255, and class numbers."""

    images: UInt8[Array, "examples height width channels"]
    labels: Int32[Array, "examples"]


class StreamedSplit(NamedTuple):
    """A split in device memory, and what a step takes of others, which come from the host."""

    own: DeviceSplit
    drawn: DeviceSplit  # the step's extra examples, in the order of ``ExtraDraws.indices``


def put_on_device(split: Split, sharding: jax.sharding.Sharding | None = None) -> DeviceSplit:
    """Copy a split to the default device, or as a sharding says: to each if it is replicated."""
    return DeviceSplit(_place(split.images, sharding), _place(split.labels, sharding))


def _place(array: np.ndarray, sharding: jax.sharding.Sharding | None) -> Array:
    if sharding is None:
        return jax.device_put(array)
    # Also serves meshes over several processes, each of which holds the whole array.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


# 1/255 in two parts. A uint8 times the first is exact in float32, so the sum below rounds once and
# equals x / 255; a plain division by a constant is compiled to a multiplication, which is off by a
# unit in the last place for half of the pixel values.
_RECIPROCAL_HIGH = np.float32(257 / 65536)
_RECIPROCAL_LOW = np.float32(1 / 255 - 257 / 65536)


def to_float(images: UInt8[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Return pixels on the [0, 1] scale: ``x / 255``, correctly rounded."""
    pixels = images.astype(jnp.float32)
    return pixels * _RECIPROCAL_HIGH + pixels * _RECIPROCAL_LOW


# ---- Training ----


def batches_per_epoch(num_examples: int, batch_size: int, field: str = "batch_size") -> int:
    """Return the number of full batches; the rest of an epoch's permutation is not used.

    Raises:
      UsageError: there is not one full batch.
    """
    if not 1 <= batch_size <= num_examples:
        raise UsageError(
            f"{field}={batch_size}: must be 1 to {num_examples}, the number of training examples"
        )
    return num_examples // batch_size


def epoch_permutation(key: Key[Array, ""], num_examples: int) -> Int32[Array, "num_examples"]:
    """Return the order of the examples in one epoch."""
    return jax.random.permutation(key, jnp.arange(num_examples, dtype=jnp.int32))


@dataclasses.dataclass(frozen=True)
class ExtraDraws:
    """Which extra examples a batch gets: drawn with replacement, from a key and the step."""

    count: int  # in every batch
    first: int  # index of the first one; they come after the training split's own examples
    num_examples: int  # to draw from
    key: Key[Array, ""]  # of the run's draws

    def indices(self, step: Int[Array, ""]) -> Int32[Array, "count"]:
        """Return positions of a step's extra examples, behind those of the training split."""
        key = jax.random.fold_in(self.key, step)
        return self.first + jax.random.randint(key, (self.count,), 0, self.num_examples)


class HostExamples:
    """Extra examples in the host's memory; a step copies those that it takes to the devices."""

    def __init__(
        self, split: Split, draws: ExtraDraws, sharding: jax.sharding.Sharding | None = None
    ):
        """Take the extra examples and which of them a step gets; ``sharding`` says where."""
        self._split, self._draws, self._sharding = split, draws, sharding
        self._indices = jax.jit(draws.indices)
        self._next: tuple[int, Array] | None = None

    def at(self, step: int) -> DeviceSplit:
        """Return the examples of a step, counted from 0."""
        indices = self._next[1] if self._next and self._next[0] == step else self._drawn(step)
        # Before the step itself keeps the device busy, so that the next call need not wait for it.
        self._next = step + 1, self._drawn(step + 1)
        chosen = self._split.take(jax.device_get(indices) - self._draws.first)
        return put_on_device(chosen, self._sharding)

    def _drawn(self, step: int) -> Array:
        return self._indices(jax.device_put(np.int32(step)))


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Which batch every step of a run gets."""

    batch_size: int  # over all devices, the extra examples included
    steps_per_epoch: int  # per pass over the training split's own examples
    augmentation: Augmentation
    key: Key[Array, ""]  # of the run's steps
    sharding: jax.sharding.Sharding | None = None  # how to spread a batch over devices
    extra: ExtraDraws | None = None  # what part of the batch is extra data

    def keys(self, step: Int[Array, ""]) -> Key[Array, "2"]:
        """Return two keys of a step: of its augmentation, and of what the method draws."""
        return jax.random.split(jax.random.fold_in(self.key, step))

    def batch(
        self,
        split: DeviceSplit | StreamedSplit,
        permutation: Int32[Array, "examples"],
        step: Int[Array, ""],
    ) -> Batch:
        """Take a step's examples and augment them; to be called under jit.

        Args:
          split: the training split on the devices, followed by all extra examples, or with those of
            this step.
          permutation: of the training split's own examples, in the step's epoch.
          step: number of updates made before it.

        Returns:
          Images in [0, 1], float32, equal to ``uint8 / 255`` to the last bit; labels and indices.
        """
        own = self.batch_size - (self.extra.count if self.extra else 0)
        position = step % self.steps_per_epoch * own
        indices = jax.lax.dynamic_slice(permutation, (position,), (own,))
        if self.extra:
            indices = jnp.concatenate([indices, self.extra.indices(step)])
        if self.sharding is not None:  # each device gathers and augments its part
            indices = jax.lax.with_sharding_constraint(indices, self.sharding)
        key, _ = self.keys(step)
        if isinstance(split, StreamedSplit):
            taken = jax.tree.map(lambda array: array[indices[:own]], split.own)
            taken = jax.tree.map(lambda *parts: jnp.concatenate(parts), taken, split.drawn)
            if self.sharding is not None:
                taken = jax.lax.with_sharding_constraint(taken, self.sharding)
        else:
            taken = jax.tree.map(lambda array: array[indices], split)
        images = augment(taken.images, indices, key, self.augmentation)
        return Batch(to_float(images), taken.labels, indices)

    def with_others(
        self, batch: Batch, split: DeviceSplit | StreamedSplit, step: Int[Array, ""]
    ) -> Batch:
        """Return the batch of a step with a function that takes images of any of its examples.

        On several devices it takes them from the split, which each has, instead of from the others'
        parts of the batch. Elsewhere, and where the split is not whole, the batch stays as it is.
        """
        several = self.sharding is not None and self.sharding.num_devices > 1
        if not several or isinstance(split, StreamedSplit):
            return batch
        key, _ = self.keys(step)

        def take(indices: Int[Array, "batch"]) -> Float32[Array, "batch height width channels"]:
            return to_float(augment(split.images[indices], indices, key, self.augmentation))

        return batch._replace(take=jax.tree_util.Partial(take))  # a pytree without leaves


# ---- Evaluation ----


def batches_for_evaluation(
    split: Split,
    batch_size: int,
    num_examples: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    share: Share = ALONE,
) -> Iterator[tuple[Batch, Bool[Array, "batch"]]]:
    """Return the first examples of a split (None: all) in order, one batch at a time.

    Each batch lies on the devices and has ``batch_size`` rows. With it comes a mask of those that
    count: the others, in the last batch, repeat the last example. ``sharding`` says where; of
    several processes that have devices of their own each gets its ``share`` of the rows.

    Raises:
      UsageError: a number is out of range.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1; got {batch_size}")
    count = len(split) if num_examples is None else num_examples
    if not 0 <= count <= len(split):
        raise UsageError(
            f"num_examples must be at most {len(split)} (the size of the split); got {count}"
        )

    def batch_at(start: int) -> tuple[Batch, Bool[Array, "batch"]]:
        positions = share.own(np.arange(start, start + batch_size))
        indices = np.minimum(positions, count - 1).astype(np.int32)
        images = split.images[indices].astype(np.float32) / np.float32(255)
        arrays = (images, split.labels[indices], indices, positions < count)
        first, second, third, mask = (_place(array, sharding) for array in arrays)
        return Batch(first, second, third), mask

    return map(batch_at, range(0, count, batch_size))
