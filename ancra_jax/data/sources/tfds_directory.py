"""Prepared TFDS directories, read without TensorFlow."""

import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from ancra_jax.data.cache import cached, source_key
from ancra_jax.data.dataset import Dataset, Split
from ancra_jax.data.decode import decode_images
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import PathLike

_INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# Identifiers of the stock CIFAR data sets: they number the examples as the official archive does.
_NUMBERED = re.compile(rb"(?:train|test)_(\d+)")
_JPEG = b"\xff\xd8"
_INCOMPLETE = (
    "it was not written to the end or is damaged. Copy it again, or delete it to have the data "
    "set prepared anew"
)


def data_directory(data_dir: PathLike | None, contents: str) -> epath.Path:
    """Return the TFDS directory to look into: what the user gave, or where TFDS keeps its data.

    That is ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
      UsageError: the directory was given and does not exist or cannot be reached; the message says
        what ``contents`` it should have.
    """
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    if not given:
        return epath.Path("~/tensorflow_datasets").expanduser()
    try:
        directory = epath.Path(given).expanduser()
        exists = directory.is_dir()
    except Exception as error:  # No gcsfs, no permission, no network.
        raise UsageError(f"data_dir={given}: cannot be read: {error}") from error
    if not exists:
        raise UsageError(
            f"data_dir={directory}: does not exist or is not a directory. It must hold {contents}; "
            "make it, empty, to have the data set downloaded"
        )
    return directory


def find(data_dir: epath.Path, name: str) -> epath.Path | None:
    """Return the prepared directory of a data set, of the newest version; None if there is none.

    ``data_dir`` is a TFDS directory (``data_dir/name/version``), or the version's own directory.
    """
    if (data_dir / _INFO).exists() or _VERSION.fullmatch(data_dir.name):
        newest = data_dir
    else:
        parent = data_dir if data_dir.name == name else data_dir / name
        paths = parent.iterdir() if parent.is_dir() else ()
        versions = [path for path in paths if _VERSION.fullmatch(path.name)]
        if not versions:
            return None
        newest = max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    if not (newest / _INFO).exists():
        raise UsageError(f"{newest} has no {_INFO}: {_INCOMPLETE}")
    return newest


def load(directory: epath.Path, name: str, num_classes: int, cache_dir: PathLike | None) -> Dataset:
    """Read and decode a prepared directory, or take its decoded form from the cache.

    The directory, which `find` returned, may be on ``gs://``, where gcsfs is needed.

    Raises:
      UsageError: the directory is incomplete, damaged, of another data set, or in a format that
        needs TensorFlow where that is not installed.
    """

    def build() -> Dataset:
        with _local(directory) as local:
            return _read(local, name, num_classes)

    return cached(name, source_key("tfds", directory.iterdir()), build, cache_dir)


@contextlib.contextmanager
def _local(directory: epath.Path) -> Iterator[epath.Path]:
    """Give the directory, or a temporary copy of a remote one: array_record reads local files."""
    if "://" not in str(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        for path in directory.iterdir():
            with path.open("rb") as remote, (Path(temporary) / path.name).open("wb") as copy:
                shutil.copyfileobj(remote, copy)
        yield epath.Path(temporary)


def _read(directory: epath.Path, name: str, num_classes: int) -> Dataset:
    import tensorflow_datasets as tfds  # Takes a second to import.

    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:  # protobuf, JSON and TFDS each raise their own.
        raise UsageError(
            f"{directory} cannot be read as a TFDS directory: {error}; {_INCOMPLETE}"
        ) from error
    info = builder.info
    label: Any = info.features["label"] if {"image", "label"} <= set(info.features) else None
    classes = getattr(label, "num_classes", None)
    if (info.name, classes) != (name, num_classes) or not {"train", "test"} <= set(info.splits):
        raise UsageError(
            f"{directory} holds {info.name!r} with the features {', '.join(info.features)}, "
            f"{classes} classes and the splits {', '.join(info.splits)}; must be {name!r} with "
            f"image, label, {num_classes} classes, train and test"
        )
    (train, jpeg), (test, _) = (_read_split(builder, part) for part in ("train", "test"))
    return Dataset(name, train, test, tuple(label.names), recoded="JPEG" if jpeg else "")


def _read_split(builder: Any, part: str) -> tuple[Split, bool]:
    """Return a split, and whether its images are stored as JPEG; those of the originals are not."""
    for path in builder.info.splits[part].filepaths:
        if not path.exists():
            raise UsageError(f"{path} is missing: {_INCOMPLETE}")
    records = _in_official_order(_records(builder, part))
    images, _ = decode_images(
        len(records),
        read=lambda i: records[i]["image"],
        describe=lambda i: f"{part} image {i} of {builder.data_path}",
        largest=32,
    )
    split = Split(images, np.array([record["label"] for record in records], np.int32))
    return split, records[0]["image"].startswith(_JPEG)


def _records(builder: Any, part: str) -> list[dict[str, Any]]:
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    file_format = builder.info.file_format.value
    with_tensorflow = file_format == "tfrecord" and importlib.util.find_spec("tensorflow")
    if file_format != "array_record" and not with_tensorflow:
        raise UsageError(
            f"{builder.data_path} is in the format {file_format!r}, which needs TensorFlow to be "
            "read: pip install tensorflow, or give a data_dir without this directory to have the "
            "data set prepared as array_record"
        )
    try:
        if with_tensorflow:
            return list(tfds.as_numpy(builder.as_dataset(part, decoders=encoded)))
        source = builder.as_data_source(part, decoders=encoded)
        return list(source.__getitems__(range(len(source))))
    except Exception as error:  # RuntimeError by array_record, their own by features, TensorFlow.
        raise UsageError(
            f"{builder.data_path}: the {part} split cannot be read ({error}): {_INCOMPLETE}"
        ) from error


def _in_official_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Undo TFDS' shuffling where identifiers tell the order of the official archive."""
    matches = [_NUMBERED.fullmatch(record.get("id", b"")) for record in records]
    numbers = [int(match[1]) for match in matches if match]
    if len(numbers) < len(records):
        return records
    return [records[i] for i in np.argsort(numbers)]
