"""A data set in memory: uint8 images, int32 labels, class names."""

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Sequence

import numpy as np

from ancra_jax.errors import UsageError

_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny_imagenet": "Tiny-ImageNet"}


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, on the host; images may be a read-only memory map of a file.

    Raises:
      UsageError: the arrays have another type or shape or disagree in length.
    """

    images: np.ndarray  # uint8 [examples, height, width, channels], pixels in 0..255
    labels: np.ndarray  # int32 [examples], class numbers

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
            raise UsageError(
                "images must be a uint8 NumPy array [examples, height, width, channels] with "
                f"pixels in 0..255; got {_describe(images)}"
            )
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int32 or labels.ndim != 1:
            raise UsageError(f"labels must be an int32 NumPy array; got {_describe(labels)}")
        if len(images) != len(labels):
            raise UsageError(f"there are {len(images)} images but {len(labels)} labels")
        if 0 in images.shape[1:]:
            raise UsageError(f"images must have pixels; got the shape {images.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:  # without pixels
        return f"Split({len(self)} images of {'x'.join(map(str, self.images.shape[1:]))})"

    @property
    def fingerprint(self) -> str:
        """Return what identifies the contents, equal on every machine."""
        return fingerprint_of([self.images, self.labels])

    def take(self, indices: np.ndarray) -> "Split":
        """Return a copy of the examples at ``indices``.

        Images begin at a multiple of 64 bytes, so that a CPU device need not copy them once more.
        """
        labels = self.labels[indices]  # an error for a number that is out of range
        shape = (len(indices), *self.images.shape[1:])
        memory = np.empty(math.prod(shape) + 64, np.uint8)
        images = memory[-memory.ctypes.data % 64 :][: math.prod(shape)].reshape(shape)
        # Modes other than "clip" would take them to another place first. Negative numbers count
        # from the end, as for the labels.
        np.take(self.images, indices % len(self), axis=0, out=images, mode="clip")
        return Split(images, labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split.

    Raises:
      UsageError: a split is empty, a label is outside the classes, or the splits' images differ in
        shape.
    """

    name: str  # that it was loaded under
    train: Split
    test: Split
    class_names: tuple[str, ...]  # one a class, in the order of the labels
    fingerprint: str = ""  # equal for equal images, labels, class names; computed if not given
    recoded: str = ""  # a lossy format ('JPEG') that images went through, which changed pixels

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UsageError(
                f"{self.name}: at least two classes are needed; got {self.class_names}"
            )
        for part, split in (("train", self.train), ("test", self.test)):
            if len(split) == 0:
                raise UsageError(f"{self.name}: the {part} split has no examples")
            check_labels(split.labels, self.num_classes, self.name, f"{part} example")
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise UsageError(
                f"{self.name}: training images have the shape {self.train.images.shape[1:]}, "
                f"test images {self.test.images.shape[1:]}"
            )
        if not self.fingerprint:
            arrays = [self.train.images, self.train.labels, self.test.images, self.test.labels]
            object.__setattr__(self, "fingerprint", fingerprint_of(arrays, self.class_names))

    @property
    def title(self) -> str:
        """Return its name in results: ``CIFAR-10``, or ``CIFAR-10 (JPEG)`` if recoded."""
        return title_of(self.name, self.recoded)

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def title_of(name: str, recoded: str) -> str:
    """Return what results call a data set."""
    title = _TITLES.get(name, name)
    return f"{title} ({recoded})" if recoded else title


def check_whole_numbers(array: np.ndarray, count: int, source: str, name: str) -> None:
    """Check that an array of a file has ``count`` whole numbers; the error names both."""
    if not np.issubdtype(array.dtype, np.integer) or array.shape != (count,):
        raise UsageError(
            f"{source}: {name} is {array.dtype} of shape {array.shape}; must be {count} whole "
            "numbers, one per image"
        )


def check_labels(labels: np.ndarray, num_classes: int, source: str, example: str) -> None:
    """Check that labels are class numbers; the error names the ``source`` and the ``example``."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UsageError(
            f"{source}: label {labels[wrong[0]]} of {example} {wrong[0]} is outside "
            f"0..{num_classes - 1} ({len(wrong)} such labels)"
        )


def fingerprint_of(arrays: Sequence[np.ndarray], class_names: tuple[str, ...] = ()) -> str:
    """Return what identifies arrays and class names by their contents."""
    parts = [(array.shape, zlib.crc32(np.ascontiguousarray(array).data)) for array in arrays]
    contents = json.dumps([parts, class_names])
    return hashlib.sha256(contents.encode()).hexdigest()[:16]


def _describe(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    if value.size == 0 or not np.issubdtype(value.dtype, np.number):
        return f"{value.dtype} of shape {value.shape}"
    return f"{value.dtype} of shape {value.shape} with values {value.min()} to {value.max()}"
