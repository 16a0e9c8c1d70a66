"""Data sets by name."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ancra_jax.config import options_of, path_text
from ancra_jax.data.dataset import Dataset
from ancra_jax.data.splits import check_count, subset
from ancra_jax.errors import Problems, UsageError
from ancra_jax.ops.extras import explained
from ancra_jax.ops.files import PathLike
from ancra_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """What a source is told; None is the usual place, or the size that images have."""

    data_dir: PathLike | None = None  # where the data lie
    image_size: int | None = None  # height and width; None unless registered with ``resizes=True``
    cache_dir: PathLike | None = None  # where decoded images are kept


def local_path(data_dir: PathLike) -> Path:
    """Return the path that a user gave; refuse one that is not on this machine (``gs://...``)."""
    return Path(path_text(data_dir, "data_dir"))


Source = Callable[..., Dataset]
"""``(options, *, ...) -> dataset``, with `SourceOptions`.

The keyword-only arguments are the source's own settings, ``config.data.options``.
"""


class Contents(NamedTuple):
    """What there is to load."""

    train: int  # number of training examples
    test: int  # number of test examples
    image_size: int = 0  # to resize the images to, if they cannot keep their size; 0: they can
    note: str = ""  # a line that says how it was understood


Inspect = Callable[[SourceOptions, Problems], Contents | tuple[int, int] | None]
"""Returns what there is to load, without loading it; None if that is not known.

What is wrong with the options or with what lies there is added to the problems.
"""


_sources: Registry[Source] = Registry("data set")
_resizing: set[str] = set()  # names of sources that honour ``image_size``
_inspections: dict[str, Inspect] = {}


def register(
    name: str, *, resizes: bool = False, inspect: Inspect | None = None
) -> Callable[[Source], Source]:
    """Return a decorator that makes a function of `SourceOptions` loadable by a name.

    ``resizes`` says that it honours ``image_size``; ``inspect`` tells what there is to load.

    Raises:
      UsageError: the name is taken.
    """
    add = _sources.register(name)
    if resizes:
        _resizing.add(name)
    if inspect:
        _inspections[name] = inspect
    return add


def names() -> tuple[str, ...]:
    """Return the names of all registered data sets, sorted."""
    return tuple(sorted(_sources.names()))


def load(
    name: str,
    *,
    data_dir: PathLike | None = None,
    image_size: int | None = None,
    cache_dir: PathLike | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load a data set into memory, decoding it the first time.

    Args:
      name: one of `names`.
      data_dir: where the data lie; each source says what it takes and what None means.
      image_size: height and width to resize images to, for sources that can.
      cache_dir: where decoded images are kept; None: ``$ANCRA_JAX_CACHE``, else ``ancra_jax`` in
        ``$XDG_CACHE_HOME``, else ``~/.cache/ancra_jax``.
      train_examples: keep only so many training examples (see `subset`).
      test_examples: keep only the first test examples (see `subset`).
      options: settings that the source has of its own.

    Raises:
      UsageError: the name is unknown, an option is out of range, or the data are missing, damaged
        or of a kind that cannot be read. The message says what to do.
    """
    source, settings = _source_of(name, image_size, options)
    with explained():
        dataset = source(SourceOptions(data_dir, image_size, cache_dir), **settings)
    return subset(dataset, train_examples, test_examples)


def inspect(
    problems: Problems,
    name: str,
    *,
    data_dir: PathLike | None = None,
    image_size: int | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Contents | None:
    """Return how many examples `load` would give, and of which size; None if that is not known.

    Errors in the arguments are added to the problems, as far as they can be told without loading;
    if the number of examples of a split is wrong, all its examples are counted.
    """
    with problems.collect():
        _source_of(name, image_size, options)
    found = None
    with problems.collect():
        if name not in _inspections:
            return None
        found = _inspections[name](SourceOptions(data_dir, image_size), problems)
    if found is None:
        return None
    contents = Contents(*found)
    for field, count, available in (
        ("train_examples", train_examples, contents.train),
        ("test_examples", test_examples, contents.test),
    ):
        with problems.collect():
            check_count(field, count, available)
    return contents._replace(
        train=min(train_examples or contents.train, contents.train),
        test=min(test_examples or contents.test, contents.test),
    )


def _source_of(
    name: str, image_size: int | None, options: Mapping[str, Any] | None
) -> tuple[Source, dict[str, Any]]:
    source = _sources.get(name, "name")
    settings = options_of(source, {} if options is None else options, "options")
    if image_size is not None and name not in _resizing:
        raise UsageError(f"image_size={image_size}: the images of {name!r} have a fixed size")
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size={image_size}: must be at least 1 pixel")
    return source, settings
