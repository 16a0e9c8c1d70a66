"""Decoded data sets on disk, as memory-mapped .npy files.

An entry is a folder ``<name>-<key>``. It is written under another name and renamed, so a reader
never sees half of it, and its contents are checked against their fingerprint when it is read.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from absl import logging
from etils import epath

from ancra_jax.config import path_text
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.ops.files import PathLike, read_json

_FORMAT = 2
_DESCRIPTION = "dataset.json"


def cached(
    name: str, key: str, build: Callable[[], Dataset], cache_dir: PathLike | None
) -> Dataset:
    """Return a data set's entry for this key of its source, or build and keep it.

    A damaged entry is built again; where nothing can be written, the data set is returned all the
    same. Both are logged as warnings. Entries lie in `default_directory` if ``cache_dir`` is None.
    """
    directory = Path(path_text(cache_dir, "cache_dir")) if cache_dir else default_directory()
    entry = directory / f"{name}-{key}"
    if os.path.exists(entry):  # False too where the directory may not be entered
        try:
            return _read(entry)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            logging.warning("%s is damaged (%s); decoding the data set again", entry, error)
    logging.info("decoding %s; the result is kept in %s", name, entry)
    dataset = build()
    try:
        _write(entry, dataset)
        return _read(entry)
    except OSError as error:
        logging.warning("cannot keep the decoded %s in %s: %s", name, directory, error)
        return dataset


def source_key(description: str, paths: Iterable[PathLike]) -> str:
    """Return what identifies a source: its files' paths, sizes and times of modification.

    The description says what else the decoded data depend on: kind of source and its options.
    """
    contents = json.dumps([_FORMAT, description, sorted(map(_facts, paths))])
    return hashlib.sha256(contents.encode()).hexdigest()[:16]


def _facts(path: PathLike) -> tuple[str, int, int]:
    if "://" in os.fspath(path):
        remote = epath.Path(path).stat()
        return os.fspath(path), remote.length, remote.mtime
    local = os.stat(path)
    return os.path.abspath(path), local.st_size, local.st_mtime_ns


def default_directory() -> Path:
    """Return ``$ANCRA_JAX_CACHE``, else ``ancra_jax`` in ``$XDG_CACHE_HOME``, else in ~/.cache."""
    if given := os.environ.get("ANCRA_JAX_CACHE"):
        return Path(path_text(given, "ANCRA_JAX_CACHE"))
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ancra_jax"


def _read(entry: Path) -> Dataset:
    description = dict(read_json(entry / _DESCRIPTION))
    recorded = description.pop("fingerprint")
    class_names = tuple(description.pop("class_names"))

    def mapped(fingerprint: str) -> Dataset:
        for part in ("train", "test"):
            images = np.load(entry / f"{part}_images.npy", mmap_mode="r")
            description[part] = Split(images, np.load(entry / f"{part}_labels.npy"))
        return Dataset(class_names=class_names, fingerprint=fingerprint, **description)

    if mapped("").fingerprint != recorded:
        raise ValueError("its contents do not have the recorded fingerprint")
    return mapped(recorded)  # anew: what was read of a file counts as the process's memory


def _write(entry: Path, dataset: Dataset) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=entry.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for part, split in (("train", dataset.train), ("test", dataset.test)):
            np.save(new / f"{part}_images.npy", split.images)
            np.save(new / f"{part}_labels.npy", split.labels)
        fields = ("name", "class_names", "fingerprint", "recoded")
        description = {field: getattr(dataset, field) for field in fields}
        (new / _DESCRIPTION).write_text(json.dumps(description))
        # A folder cannot be renamed onto another: a damaged entry, or that of a process that was
        # faster, is first moved aside.
        if entry.exists():
            os.rename(entry, Path(temporary) / "replaced")
        os.rename(new, entry)
