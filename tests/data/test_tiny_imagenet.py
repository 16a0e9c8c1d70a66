import io
import os

import numpy as np
import pytest
from PIL import Image

from ancra_jax import data
from ancra_jax.errors import UsageError
from tests.support import archives

FOLDER, ZIP = "tiny-imagenet-200/", "tiny-imagenet-200.zip"
FILES = archives.tiny_imagenet_files()
SMALLER = archives.encode(archives.random_image(0, 32, 48, 3), "JPEG")


def decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


@pytest.mark.parametrize(
    ("data_dir", "archive", "root"),
    [
        ("any_name.zip", "any_name.zip", FOLDER),
        ("data", f"data/{ZIP}", FOLDER),
        ("data", f"data/{ZIP}", ""),
        ("data", f"data/downloads/manual/{ZIP}", FOLDER),
        ("data", None, ""),  # extracted
    ],
)
def test_every_form_gives_the_same_data(tmp_path, data_dir, archive, root):
    if archive:
        (tmp_path / archive).parent.mkdir(parents=True, exist_ok=True)
        archives.zip_file(tmp_path / archive, FILES, root)
    else:
        archives.write_files(tmp_path / data_dir, FILES)
    dataset = data.load("tiny_imagenet", data_dir=tmp_path / data_dir)
    # Labels by wnids.txt (n02, n01, n03), words from words.txt.
    assert dataset.class_names == ("cat", "goldfish, Carassius auratus", "dog")
    train_names = sorted(name for name in FILES if name.startswith("train/") and "images" in name)
    expected = np.stack([decode(FILES[name]) for name in train_names])
    np.testing.assert_array_equal(dataset.train.images, expected)
    np.testing.assert_array_equal(dataset.train.labels, [1, 1, 0, 0, 2, 2])
    expected = np.stack([decode(FILES[f"val/images/val_{i}.JPEG"]) for i in range(4)])
    np.testing.assert_array_equal(dataset.test.images, expected)
    np.testing.assert_array_equal(dataset.test.labels, [2, 1, 0, 1])


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_truncated_zip_is_named(tmp_path, share):
    path = tmp_path / ZIP
    archives.zip_file(path, FILES)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(UsageError, match=r"tiny-imagenet-200\.zip: is not a whole zip file"):
        data.load("tiny_imagenet", data_dir=path)


def test_damaged_bytes_inside_the_zip_are_named(tmp_path):
    path = tmp_path / ZIP
    archives.zip_file(path, FILES)
    contents = bytearray(path.read_bytes())
    place = contents.index(b"n01_1.JPEG") + 200
    contents[place : place + 50] = bytes(50)
    path.write_bytes(contents)
    with pytest.raises(UsageError, match=r"\.zip: train/n01/images/n01_1\.JPEG is damaged"):
        data.load("tiny_imagenet", data_dir=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wnids.txt": None}, "has no wnids.txt"),
        ({"val/val_annotations.txt": None}, "has no val/val_annotations.txt"),
        ({"val/val_annotations.txt": b""}, "has no validation images"),
        ({"val/images/val_2.JPEG": None}, "has no val/images/val_2.JPEG"),
        ({"wnids.txt": b"n01\nn02\nn03\nn09\n"}, "has no training images of class n09"),
        ({"wnids.txt": b"n01\nn02\n"}, "is of class n03, not in wnids.txt"),
        ({"train/n01/images/n01_0.JPEG": b"no image"}, "n01_0.JPEG is not an image"),
        (
            {
                "train/n01/images/n01_0.JPEG": archives.encode(
                    archives.random_image(0, 32, 48, 3), "JPEG"
                )
            },
            r"train/n01/images/n01_1.JPEG has 64x64 .*n01_0.JPEG has 48x32",
        ),
    ],
)
def test_incomplete_archives_are_refused(tmp_path, change, message):
    files = FILES | change
    path = tmp_path / ZIP
    archives.zip_file(path, {name: files[name] for name in files if files[name] is not None})
    with pytest.raises(UsageError, match=message) as error:
        data.load("tiny_imagenet", data_dir=path)
    assert str(path) in str(error.value)


def test_missing_places(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: does not exist.*tiny-imagenet-200\.zip"):
        data.load("tiny_imagenet", data_dir=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"data_dir=.gs://"):
        data.load("tiny_imagenet", data_dir="gs://bucket/data")
