"""How far features lie from each other: what ``evaluate --suite=features`` keeps of a checkpoint.

``features.json`` has, besides what every result has:

- ``classes``: the names of the classes;
- ``counts``: how many of the examples each class has;
- ``measured``: the names of the features, ``z`` (the pooled output of the last block) and for
  reverse attention ``z_masked`` (the same after the mask, z' in the paper: what the final logits
  see);
- ``attacks``: PGD-10 on the cross-entropy of the final logits, ``adversarial``, and for reverse
  attention of all heads, ``adversarial_heads``;
- ``accuracy_under``: the accuracy on the natural images, ``natural``, and under each attack.

``features.npz`` has for every feature F, measure M (``cosine``: of the angle; ``l2``: distance) and
kind of pairs P (``others``: a natural example and a natural one of another class; or the name of an
attack: a natural example and its own adversarial one)::

    F.M.P.edges      [bins + 1]           of the histogram
    F.M.P.counts     [classes, bins]      of pairs, by the class of the natural example
    F.M.P.mean       [classes + 1, 3]     over the pairs: value, low, high; the last row: all
    F.M.P.overlap    [classes + 1, 3]     of attacks alone
    F.norm           [classes]            mean L2 norm of the natural features

The overlap is the share of pairs of a natural example and one of another class that are nearer to
each other than the natural example and its own adversarial one: 0 where alignment and exclusion are
perfect, about 0.5 where an attack moves features as far as another class is. Low and high are the
95 % interval of a bootstrap over the examples. Rows of classes without examples are NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ancra_jax.errors import UsageError
from ancra_jax.ops.files import AnyPath, read_arrays
from ancra_jax.results.names import FEATURES
from ancra_jax.results.store import read_result

OTHERS = "others"
COSINE, L2 = MEASURES = ("cosine", "l2")
FEATURE_TITLES = {"z": "z", "z_masked": "z'"}


class Number(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """The distances of the features of one checkpoint."""

    record: dict[str, Any]  # the content of the JSON file; below, some of it
    arrays: dict[str, np.ndarray]  # of the array file
    step: int  # of the checkpoint
    data_fingerprint: str
    classes: list[str]  # names
    counts: list[int]  # of the examples, by class
    measured: list[str]  # names of the features; the last one is what the final logits see
    attacks: list[str]  # names of those that made the adversarial examples

    def class_number(self, name: str, field: str) -> int | None:
        """Return the number of a class, given as its number or name; None for ``'all'``.

        Raises:
          UsageError: there is no such class, or no example of it or of the others was measured;
            the message begins with ``field``.
        """
        number = class_number(name, self.classes, field)
        if number is None:
            return None
        total = sum(self.counts)
        if self.counts[number] in (0, total):
            raise UsageError(
                f"{field}={name}: of {total} examples {self.counts[number]} are of the class; "
                "it needs some of it and some of others (--num_examples)"
            )
        return number

    def histogram(
        self, feature: str, measure: str, pairs: str, number: int | None = None
    ) -> tuple[Float[np.ndarray, "edges"], Int[np.ndarray, "bins"]]:
        """Return edges and counts, of pairs with a natural example of a class (None: of any)."""
        counts = self.arrays[f"{feature}.{measure}.{pairs}.counts"]
        edges = self.arrays[f"{feature}.{measure}.{pairs}.edges"]
        return edges, counts.sum(axis=0) if number is None else counts[number]

    def mean(self, feature: str, measure: str, pairs: str, number: int | None = None) -> Number:
        """Return the mean over the pairs of a class (None: of all)."""
        return self._number(f"{feature}.{measure}.{pairs}.mean", number)

    def overlap(self, feature: str, measure: str, attack: str, number: int | None = None) -> Number:
        """Return how often another class is nearer than the own adversarial example."""
        return self._number(f"{feature}.{measure}.{attack}.overlap", number)

    def norm(self, feature: str, number: int | None = None) -> float:
        """Return the mean L2 norm of the natural features of a class (None: of all)."""
        norms = self.arrays[f"{feature}.norm"]
        if number is not None:
            return float(norms[number])
        return float(np.nansum(norms * self.counts) / sum(self.counts))

    def _number(self, name: str, number: int | None) -> Number:
        return Number(*map(float, self.arrays[name][-1 if number is None else number]))


def load_features(directory: AnyPath) -> StoredFeatures | None:
    """Read what is kept of features in an evaluation's directory; None if there is nothing.

    Raises:
      UsageError: it is damaged.
    """
    path = directory / f"{FEATURES}.json"
    if not path.exists():
        return None
    record = read_result(path)
    needed = ("step", "data_fingerprint", "classes", "counts", "measured", "attacks")
    if missing := [name for name in (*needed, "settings") if name not in record]:
        raise UsageError(f"{path}: lacks {', '.join(missing)}")
    names = []
    for feature in record["measured"]:
        names.append(f"{feature}.norm")
        for measure in MEASURES:
            for pairs in (OTHERS, *record["attacks"]):
                kinds = ("edges", "counts", "mean", "overlap")[: 3 if pairs == OTHERS else 4]
                names += [f"{feature}.{measure}.{pairs}.{kind}" for kind in kinds]
    arrays = read_arrays(path.with_suffix(".npz"), names)
    return StoredFeatures(record=record, arrays=arrays, **{name: record[name] for name in needed})


def class_number(name: str, classes: Sequence[str], field: str) -> int | None:
    """Return the number of a class, given as its number or name; None for ``'all'``.

    Raises:
      UsageError: there is no such class; the message begins with ``field``.
    """
    if name == "all":
        return None
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise UsageError(
        f"{field}={name}: there is no such class; allowed are all, 0 to {len(classes) - 1}, or a "
        f"name such as {classes[0]}"
    )
