import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.data.sources import folder as folder_source
from ancra_jax.errors import Problems, UsageError
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


PLACES = {
    "nothing": ({}, "has no folders of images"),
    "no classes": (["0.png", "1.png"], "has no folders of images"),
    "one class": (["train/a/0.png", "test/a/0.png"], "at least two classes"),
    "a folder around": ([f"all/{name}/{i}.png" for name in "ab" for i in range(5)], "did you mean"),
    "no training split": (["test/a/0.png", "test/b/0.png"], "none called 'train'"),
    "empty test": (["train/a/0.png", "train/b/0.png", "test/a/0.txt"], "test has no images"),
    "few": ([f"{name}/{i}.png" for name in "ab" for i in range(4)], "no class of 5 images"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_folder_that_is_none_is_told_what_is_expected(tmp_path, case):
    names, message = PLACES[case]
    write_files(tmp_path, dict.fromkeys(names, IMAGE))
    with pytest.raises(UsageError, match=message):
        data.load("folder", data_dir=tmp_path)


def test_a_data_dir_that_is_no_folder(tmp_path):
    with pytest.raises(UsageError, match="data_dir=''"):
        data.load("folder")
    with pytest.raises(UsageError, match=r"data_dir=.*no such folder"):
        data.load("folder", data_dir=tmp_path / "nowhere")
    write_files(tmp_path, {"all.zip": b""})
    with pytest.raises(UsageError, match=r"data_dir=.*unpack"):
        data.load("folder", data_dir=tmp_path / "all.zip")


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    folder(tmp_path)
    wrong = {
        "train/dog/1.png": b"no image",
        "train/cat/1.png": encode(np.zeros((6, 5), np.uint16)),
        "train/empty/readme.txt": b"",
        "test/bird/0.png": IMAGE,
    }
    write_files(tmp_path, wrong)
    with pytest.raises(UsageError) as error:
        data.load("folder", data_dir=tmp_path)
    assert all(name in str(error.value) for name in ("train/empty", "'bird'"))
    (tmp_path / "train/empty/readme.txt").rename(tmp_path / "train/empty/0.png")
    write_files(tmp_path, {"train/bird/0.png": IMAGE})
    with pytest.raises(UsageError) as decoding:
        data.load("folder", data_dir=tmp_path)
    problems = Problems()
    data.inspect(problems, "folder", data_dir=tmp_path)
    with pytest.raises(UsageError) as looking:
        problems.raise_all()
    for name in ("dog/1.png", "cat/1.png", "empty/0.png"):
        assert name in str(decoding.value) and name in str(looking.value)


def test_many_damaged_images_are_counted(tmp_path):
    folder(tmp_path)
    write_files(tmp_path, {f"train/dog/{i:03}.png": b"no image" for i in range(300)})
    with pytest.raises(UsageError, match=r"dog/009\.png .* 290 more") as error:
        data.load("folder", data_dir=tmp_path)
    assert len(error.value.messages) == 11


@pytest.mark.parametrize("root", ["", "train/", "Training/"])
def test_without_a_test_split_every_fifth_image_is_held_out(tmp_path, root):
    pixels = {f"{name}/{i}.png": random_image(i, 6, 5, 3) for name in "ba" for i in range(9)}
    place = tmp_path / "place"
    write_files(place, {f"{root}{name}": encode(image) for name, image in pixels.items()})
    write_files(place, {"notes.txt": b"", "__MACOSX/._a/0.png": b"x", ".git/x/0.png": b"x"})
    dataset = data.load("folder", data_dir=place)
    assert dataset.class_names == ("a", "b") and len(dataset.train) == 16
    expected = np.stack([pixels["a/4.png"], pixels["b/4.png"]])
    np.testing.assert_array_equal(dataset.test.images, expected)
    np.testing.assert_array_equal(dataset.test.labels, [0, 1])
    contents = data.inspect(Problems(), "folder", data_dir=place)
    assert contents[:3] == (16, 2, 0) and "test" in contents.note


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Test"), ("training", "validation")])
def test_splits_may_be_called_otherwise(tmp_path, names):
    write_files(tmp_path, {f"{part}/{name}/0.png": IMAGE for part in names for name in "ab"})
    dataset = data.load("folder", data_dir=tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (2, 2)
    assert not data.inspect(Problems(), "folder", data_dir=tmp_path).note


SIZES = {  # of the images, and what is chosen for them; 0: theirs
    ((8, 8), (8, 8)): 0,
    ((96, 64), (96, 64)): 0,
    ((97, 64), (97, 64)): 32,
    ((20, 20), (30, 25)): 32,
    ((200, 300), (100, 70)): 32,
}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_size_is_chosen_where_theirs_cannot_be_kept(tmp_path, sizes):
    for part in ("train", "test"):
        for name, size in zip("ab", sizes, strict=True):
            image = encode(np.zeros((*size, 3), np.uint8))
            write_files(tmp_path, {f"{part}/{name}/0.png": image})
    problems = Problems()
    contents = data.inspect(problems, "folder", data_dir=tmp_path)
    assert contents.image_size == SIZES[sizes] and not problems
    assert data.inspect(problems, "folder", data_dir=tmp_path, image_size=16).image_size == 0


def test_many_images_are_kept_larger(tmp_path, monkeypatch):
    large, other = (encode(np.zeros((70, width, 3), np.uint8)) for width in (90, 80))
    write_files(tmp_path, {f"a/{i}.png": large for i in range(8)})
    write_files(tmp_path, {f"b/{i}.png": other for i in range(8)})
    monkeypatch.setattr(folder_source, "_MANY", 14)
    assert data.inspect(Problems(), "folder", data_dir=tmp_path).image_size == 64


def test_changed_file_is_read_again(tmp_path):
    folder(tmp_path)
    data.load("folder", data_dir=tmp_path)
    image = random_image(99, 6, 5, 3)
    write_files(tmp_path, {"test/cat/0.png": encode(image)})
    np.testing.assert_array_equal(data.load("folder", data_dir=tmp_path).test.images[0], image)
