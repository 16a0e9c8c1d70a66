"""Prepare CIFAR-10 and CIFAR-100 as TFDS directories, without TensorFlow.

Name, version, features and keys are those of the stock TFDS builders, so either reads what the
other has prepared as array_record.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from ancra_jax.data.sources import archives
from ancra_jax.errors import UsageError
from ancra_jax.ops.archives import read_tar

_PIXELS = 3 * 32 * 32


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10 from the archive of its binary version."""

    name = "cifar10"
    VERSION = tfds.core.Version("3.0.2")
    archive: ClassVar[archives.Archive] = archives.CIFAR10
    archive_path: epath.Path
    train_files: ClassVar[list[str]] = [f"data_batch_{i}.bin" for i in range(1, 6)]
    test_files: ClassVar[list[str]] = ["test_batch.bin"]
    # Feature of each label byte in front of an image, the file of its names, number of classes.
    label_bytes: ClassVar[list[tuple[str, str, int]]] = [("label", "batches.meta.txt", 10)]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(32, 32, 3))}
        for feature, _, classes in self.label_bytes:
            features[feature] = tfds.features.ClassLabel(num_classes=classes)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # The archive was obtained before.
        path = self.archive_path
        parts = {"train": self.train_files, "test": self.test_files}
        names_files = [names_file for _, names_file, _ in self.label_bytes]
        files = _read_archive(path, self.train_files + self.test_files + names_files)
        for feature, names_file, classes in self.label_bytes:
            names = files[names_file].decode().split()
            if len(names) != classes:
                raise UsageError(f"{path}: {names_file} has {len(names)} names, not {classes}")
            self.info.features[feature].names = names
        records = {
            part: np.concatenate([self._parse(path, name, files[name]) for name in names])
            for part, names in parts.items()
        }
        return {part: self._generate_examples(part, records[part]) for part in parts}

    def _parse(
        self, path: epath.Path, name: str, contents: bytes
    ) -> UInt8[np.ndarray, "examples bytes"]:
        """Return a row per example: its label bytes, then its pixels, channel by channel."""
        row = len(self.label_bytes) + _PIXELS
        if not contents or len(contents) % row:
            raise UsageError(
                f"{path}: {name} must hold {row} bytes an image; it has {len(contents)}"
            )
        records = np.frombuffer(contents, np.uint8).reshape(-1, row)
        for column, (feature, _, classes) in enumerate(self.label_bytes):
            largest = records[:, column].max()
            if largest >= classes:
                raise UsageError(
                    f"{path}: {name} has the {feature} {largest}, not 0..{classes - 1}"
                )
        return records

    def _generate_examples(
        self, part: str, records: UInt8[np.ndarray, "examples bytes"]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        features = [feature for feature, _, _ in self.label_bytes]
        pixels = records[:, len(features) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        with ThreadPoolExecutor() as pool:
            for index, image in enumerate(pool.map(_png, pixels)):
                labels = {name: int(records[index, column]) for column, name in enumerate(features)}
                yield index, {"id": f"{part}_{index:05d}", "image": image} | labels


class Cifar100(Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100 from the archive of its binary version."""

    name = "cifar100"
    archive = archives.CIFAR100
    train_files: ClassVar[list[str]] = ["train.bin"]
    test_files: ClassVar[list[str]] = ["test.bin"]
    label_bytes: ClassVar[list[tuple[str, str, int]]] = [
        ("coarse_label", "coarse_label_names.txt", 20),
        ("label", "fine_label_names.txt", 100),
    ]


def prepare(name: str, data_dir: epath.Path) -> None:
    """Write ``data_dir/name/version`` as array_record; ``name`` is ``cifar10`` or ``cifar100``."""
    builders = {builder.name: builder for builder in (Cifar10, Cifar100)}
    try:
        builder = builders[name](data_dir=data_dir, file_format="array_record")
        builder.archive_path = archives.obtain(builder.archive, name, data_dir)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except OSError as error:
        raise UsageError(f"{name} cannot be prepared in {data_dir}: {error}") from error


def _read_archive(path: epath.Path, names: list[str]) -> dict[str, bytes]:
    """Return the contents of the named files of an archive, whatever folder they are in."""
    files = read_tar(path, names)
    missing = set(names) - set(files)
    if missing:
        raise UsageError(f"{path} has no {', '.join(sorted(missing))}: it is another archive")
    return files


def _png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
