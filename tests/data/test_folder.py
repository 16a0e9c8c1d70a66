import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.errors import UsageError
from tests.support.archives import encode, random_image, write_files

IMAGE = encode(random_image(0, 6, 5, 3))


def folder(tmp_path, shape=(6, 5, 3), image_format="PNG", suffix=".png"):
    """Two classes, 3 and 2 training images, one test image each."""
    names = ["train/dog/0", "train/dog/1", "train/dog/2", "train/cat/0", "train/cat/1"]
    names += ["test/dog/0", "test/cat/0"]
    pixels = {name + suffix: random_image(seed, *shape) for seed, name in enumerate(names)}
    write_files(tmp_path, {name: encode(image, image_format) for name, image in pixels.items()})
    return pixels


@pytest.mark.parametrize(
    ("image_format", "suffix"),
    [("PNG", ".png"), ("BMP", ".bmp"), ("WEBP", ".WEBP"), ("TIFF", ".tif")],
)
def test_classes_take_turns(tmp_path, image_format, suffix):
    pixels = folder(tmp_path, image_format=image_format, suffix=suffix)
    write_files(tmp_path, {"train/cat/notes.txt": b"x", "train/.hidden/a.png": b"x", "a.txt": b""})
    dataset = data.load("folder", data_dir=str(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (6, 5, 3)
    np.testing.assert_array_equal(dataset.train.labels, [0, 1, 0, 1, 1])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1])
    if image_format != "WEBP":  # Not lossless.
        order = ["cat/0", "dog/0", "cat/1", "dog/1", "dog/2"]
        expected = np.stack([pixels[f"train/{name}{suffix}"] for name in order])
        np.testing.assert_array_equal(dataset.train.images, expected)


def test_grey_folder_has_one_channel(tmp_path):
    pixels = folder(tmp_path, shape=(6, 5))
    dataset = data.load("folder", data_dir=tmp_path)
    assert dataset.image_shape == (6, 5, 1)
    np.testing.assert_array_equal(dataset.test.images[0, ..., 0], pixels["test/cat/0.png"])

    write_files(tmp_path, {"test/dog/0.png": IMAGE})
    dataset = data.load("folder", data_dir=tmp_path)
    assert dataset.image_shape == (6, 5, 3)
    np.testing.assert_array_equal(dataset.test.images[0, ..., 2], pixels["test/cat/0.png"])


def test_different_sizes_need_image_size(tmp_path):
    folder(tmp_path)
    write_files(tmp_path, {"train/dog/1.png": encode(random_image(0, 8, 7, 3))})
    with pytest.raises(UsageError, match=r"dog/1\.png has 7x8 .*cat/0\.png has 5x6.*image_size"):
        data.load("folder", data_dir=tmp_path)
    dataset = data.load("folder", data_dir=tmp_path, image_size=4)
    assert dataset.image_shape == (4, 4, 3)


def test_resizing_keeps_the_aspect_ratio(tmp_path):
    folder(tmp_path)
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 3:21] = 200  # The centred square and what the filter sees beside it.
    write_files(tmp_path, {"test/cat/0.png": encode(wide)})
    dataset = data.load("folder", data_dir=tmp_path, image_size=4)
    np.testing.assert_array_equal(dataset.test.images[0], 200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/dog/1.png": b""}, r"train/dog/1\.png is not an image"),
        ({"train/dog/1.png": encode(random_image(0, 60, 50, 3))[:500]}, "1.png is not an image"),
        ({"train/dog/1.png": encode(np.zeros((6, 5), np.uint16))}, "more than 8 bits"),
        ({"test/bird/0.png": IMAGE}, "class 'bird', which is not"),
        ({"train/empty/readme.txt": b""}, "train/empty has no images"),
    ],
)
def test_bad_files_are_named(tmp_path, change, message):
    folder(tmp_path)
    write_files(tmp_path, change)
    with pytest.raises(UsageError, match=message):
        data.load("folder", data_dir=tmp_path)


def test_missing_parts(tmp_path):
    with pytest.raises(UsageError, match="data_dir=''"):
        data.load("folder")
    with pytest.raises(UsageError, match="has no folder 'train'"):
        data.load("folder", data_dir=tmp_path)
    write_files(tmp_path, {"train/a/0.png": IMAGE})
    with pytest.raises(UsageError, match="has no folder 'test'"):
        data.load("folder", data_dir=tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(UsageError, match="test has no images"):
        data.load("folder", data_dir=tmp_path)
    write_files(tmp_path, {"test/a/0.png": IMAGE})
    with pytest.raises(UsageError, match="at least two classes are needed"):
        data.load("folder", data_dir=tmp_path)


def test_changed_file_is_read_again(tmp_path):
    folder(tmp_path)
    data.load("folder", data_dir=tmp_path)
    image = random_image(99, 6, 5, 3)
    write_files(tmp_path, {"test/cat/0.png": encode(image)})
    np.testing.assert_array_equal(data.load("folder", data_dir=tmp_path).test.images[0], image)
