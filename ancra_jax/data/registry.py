"""Data sets by name."""

import dataclasses
import difflib
import os
from collections.abc import Callable
from pathlib import Path

from ancra_jax.data.dataset import Dataset
from ancra_jax.data.splits import subset
from ancra_jax.errors import UsageError

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """What a source is told.

    Attributes:
      data_dir: where the data lie; None for the source's usual place.
      image_size: height and width to resize images to; None leaves them as they are. Only sources
        registered with ``resizes=True`` see a number here.
      cache_dir: where decoded images are kept; None for the usual place.
    """

    data_dir: PathLike | None = None
    image_size: int | None = None
    cache_dir: PathLike | None = None


def local_path(data_dir: PathLike) -> Path:
    """The path a user gave.

    Raises:
      UsageError: it is not on this machine (``gs://...``).
    """
    if "://" in os.fspath(data_dir):
        raise UsageError(f"data_dir {data_dir} must be local for this data set; copy it first")
    return Path(data_dir).expanduser()


Source = Callable[[SourceOptions], Dataset]


@dataclasses.dataclass(frozen=True)
class _Entry:
    source: Source
    resizes: bool


_SOURCES: dict[str, _Entry] = {}


def register(name: str, *, resizes: bool = False) -> Callable[[Source], Source]:
    """Makes a source loadable by name: ``@register('mine')`` above a function of `SourceOptions`.

    Args:
      name: what `load` is to call it; replaces a source of that name.
      resizes: whether the source honours ``image_size``.
    """

    def decorator(source: Source) -> Source:
        _SOURCES[name] = _Entry(source, resizes)
        return source

    return decorator


def names() -> tuple[str, ...]:
    """Names of all registered data sets, sorted."""
    return tuple(sorted(_SOURCES))


def load(
    name: str,
    *,
    data_dir: PathLike | None = None,
    image_size: int | None = None,
    cache_dir: PathLike | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
) -> Dataset:
    """Loads a data set into memory, decoding it the first time.

    Args:
      name: one of `names`.
      data_dir: where the data lie; each source says what it takes and what None means.
      image_size: height and width to resize images to, for sources that can.
      cache_dir: where decoded images are kept; None: ``$ANCRA_JAX_CACHE``, else ``ancra_jax`` in
        ``$XDG_CACHE_HOME``, else ``~/.cache/ancra_jax``.
      train_examples: keep only so many training examples (see `subset`).
      test_examples: keep only the first test examples (see `subset`).

    Raises:
      UsageError: the name is unknown, an option is out of range, or the data are missing, damaged
        or of a kind that cannot be read. The message says what to do.
    """
    if name not in _SOURCES:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown data set {name!r}; known: {', '.join(names())}.{hint}")
    entry = _SOURCES[name]
    if image_size is not None and not entry.resizes:
        raise UsageError(f"image_size={image_size}: the images of {name!r} have a fixed size")
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size must be at least 1 pixel; got {image_size}")
    dataset = entry.source(SourceOptions(data_dir, image_size, cache_dir))
    return subset(dataset, train_examples, test_examples)
