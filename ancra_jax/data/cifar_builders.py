"""Builders of CIFAR-10 and CIFAR-100 that do without TensorFlow.

Name, version, features, keys and checksums are those of the stock TFDS builders, so either reads
what the other has prepared as array_record.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo

from ancra_jax.errors import UsageError

_URL = "https://www.cs.toronto.edu/~kriz/"
_SHAPE = (32, 32, 3)
_PIXELS = 3 * 32 * 32


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10 from the archive of its binary version."""

    name = "cifar10"
    VERSION = tfds.core.Version("3.0.2")
    archive: ClassVar[str] = "cifar-10-binary.tar.gz"
    url_infos: ClassVar[dict[str, UrlInfo]] = {
        _URL + archive: UrlInfo(
            size=170052171,
            checksum="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            filename=archive,
        )
    }
    train_files: ClassVar[list[str]] = [f"data_batch_{i}.bin" for i in range(1, 6)]
    test_files: ClassVar[list[str]] = ["test_batch.bin"]
    # Feature of each label byte in front of an image, the file of its names, number of classes.
    label_bytes: ClassVar[list[tuple[str, str, int]]] = [("label", "batches.meta.txt", 10)]

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            feature: tfds.features.ClassLabel(num_classes=classes)
            for feature, _, classes in self.label_bytes
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "image": tfds.features.Image(shape=_SHAPE)} | labels
            ),
            supervised_keys=("image", "label"),
            homepage=_URL + "cifar.html",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        files = _read_archive(dl_manager.download(_URL + self.archive))
        for feature, names_file, _ in self.label_bytes:
            self.info.features[feature].names = files[names_file].decode().split()
        return {
            "train": self._generate_examples("train", [files[name] for name in self.train_files]),
            "test": self._generate_examples("test", [files[name] for name in self.test_files]),
        }

    def _generate_examples(
        self, part: str, contents: list[bytes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        label_features = [feature for feature, _, _ in self.label_bytes]
        num_labels = len(label_features)
        records = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, num_labels + _PIXELS)
        for index, record in enumerate(records):
            image = record[num_labels:].reshape(3, 32, 32).transpose(1, 2, 0)
            labels = dict(zip(label_features, map(int, record[:num_labels]), strict=True))
            yield index, {"id": f"{part}_{index:05d}", "image": io.BytesIO(_png(image))} | labels


class Cifar100(Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100 from the archive of its binary version."""

    name = "cifar100"
    archive = "cifar-100-binary.tar.gz"
    url_infos: ClassVar[dict[str, UrlInfo]] = {
        _URL + archive: UrlInfo(
            size=168513733,
            checksum="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            filename=archive,
        )
    }
    train_files: ClassVar[list[str]] = ["train.bin"]
    test_files: ClassVar[list[str]] = ["test.bin"]
    label_bytes: ClassVar[list[tuple[str, str, int]]] = [
        ("coarse_label", "coarse_label_names.txt", 20),
        ("label", "fine_label_names.txt", 100),
    ]


_BUILDERS = {"cifar10": Cifar10, "cifar100": Cifar100}


def prepare(name: str, data_dir: epath.Path) -> None:
    """Writes ``data_dir/name/version`` as array_record.

    Args:
      name: ``cifar10`` or ``cifar100``.
      data_dir: TFDS directory. The archive is taken from it, from its ``downloads/manual``, from
        an earlier download, or from the internet.

    Raises:
      UsageError: the archive cannot be downloaded, is not the official one, or ``data_dir`` cannot
        be written.
    """
    builder_class = _BUILDERS[name]
    archive = builder_class.archive
    manual_dir = data_dir if (data_dir / archive).exists() else data_dir / "downloads" / "manual"
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        builder = builder_class(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(download_config=config)
    except tfds.download.download_manager.NonMatchingChecksumError as error:
        raise UsageError(
            f"{archive} (in {manual_dir} or downloaded to {data_dir / 'downloads'}) is not the "
            f"official archive or is damaged; delete it and get {_URL}{archive}"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{name} is not in {data_dir} and could not be prepared there: {error}. Download "
            f"{_URL}{archive} and put it into {data_dir / 'downloads' / 'manual'}"
        ) from error


def _read_archive(path: epath.Path) -> dict[str, bytes]:
    """Contents of an archive's files by their names without folders."""
    with tarfile.open(path, "r:gz") as archive:
        files = ((member.name, archive.extractfile(member)) for member in archive)
        return {path.rsplit("/", 1)[-1]: file.read() for path, file in files if file is not None}


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
