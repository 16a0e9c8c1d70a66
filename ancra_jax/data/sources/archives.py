"""Official archives: placed by hand, or downloaded and checked by TFDS' download manager."""

import contextlib
import dataclasses
import urllib.error
import urllib.request

from absl import logging
from etils import epath

from ancra_jax.errors import UsageError

_CONNECT_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file on the internet, with its size in bytes and its hexadecimal checksum."""

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """Return its name without the path."""
        return self.url.rsplit("/", 1)[-1]


CIFAR10 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170052171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR100 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    168513733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
TINY_IMAGENET = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    248100043,
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
)


def placed(archive: Archive, data_dir: epath.Path) -> epath.Path | None:
    """Return the archive that somebody put into ``data_dir`` or ``data_dir/downloads/manual``."""
    for directory in (data_dir, data_dir / "downloads" / "manual"):
        path = directory / archive.filename
        if path.exists():
            return path
    return None


def obtain(archive: Archive, name: str, data_dir: epath.Path) -> epath.Path:
    """Return the path of a data set's archive in a TFDS directory, after downloading it if need be.

    One placed by hand is taken as it is, with a warning if its size is not the official one:
    mirrors pack the same files differently. A download is kept under ``data_dir/downloads`` and its
    checksum must match.

    Raises:
      UsageError: it was not placed there and could not be downloaded.
    """
    path = placed(archive, data_dir)
    if path is not None:
        if path.stat().length != archive.size:
            logging.warning("%s differs from the official %s; using it", path, archive.url)
        return path
    try:
        return _download(archive, name, data_dir)
    # Network, disk and checksum each raise their own kind, some of them TFDS' own.
    except Exception as error:
        raise UsageError(
            f"{name} is not in {data_dir}, and {archive.url} could not be downloaded to it "
            f"({error}). Download it elsewhere and put it into "
            f"{data_dir / 'downloads' / 'manual'}, or give another data_dir"
        ) from error


def _download(archive: Archive, name: str, data_dir: epath.Path) -> epath.Path:
    import tensorflow_datasets as tfds  # Takes a second to import.
    from tensorflow_datasets.core.download.checksums import UrlInfo

    downloads = data_dir / "downloads"
    stem = archive.filename.split(".", 1)[0]
    if not any(downloads.glob(f"{name}/*{stem}*.INFO.json")):
        # Not downloaded before. TFDS would try an address that cannot be reached for minutes.
        request = urllib.request.Request(archive.url, method="HEAD")
        with contextlib.suppress(urllib.error.HTTPError):  # an answer, if not the file
            urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
    manager = tfds.download.DownloadManager(
        download_dir=downloads,
        url_infos={archive.url: UrlInfo(archive.size, archive.sha256, archive.filename)},
        dataset_name=name,
    )
    return manager.download(archive.url)
