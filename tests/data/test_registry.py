import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.errors import UsageError


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(UsageError, match=r"'cifar_10'; .*'cifar10'\? allowed are .*folder"):
        data.load("cifar_10")


seen = []


@data.register("bands", resizes=True)
def load_bands(options: data.SourceOptions, *, grey: int = 0) -> data.Dataset:
    seen.append(options)
    images = np.full((8, options.image_size, 4, 1), grey, np.uint8)
    split = data.Split(images, np.arange(8, dtype=np.int32) % 2)
    return data.Dataset("bands", split, split, ("even", "odd"))


def test_own_source(tmp_path):
    options = {"grey": 7}
    dataset = data.load("bands", data_dir=tmp_path, image_size=6, train_examples=4, options=options)
    assert dataset.image_shape == (6, 4, 1) and len(dataset.train) == 4
    assert seen == [data.SourceOptions(tmp_path, 6, None)]
    assert (dataset.train.images == 7).all()
    assert "bands" in data.names()


def test_a_taken_name_and_settings_that_a_source_does_not_have_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'digits'"):
        data.register("digits")
    for name, option in (("bands", "gray"), ("digits", "grey")):
        with pytest.raises(UsageError, match=rf"data\.options\.{option}"):
            data.load(name, data_dir=tmp_path, options={option: 1})


def test_image_size_is_checked(tmp_path):
    with pytest.raises(UsageError, match=r"image_size=16: .*'digits'"):
        data.load("digits", image_size=16)
    with pytest.raises(UsageError, match=r"image_size .*0"):
        data.load("folder", data_dir=tmp_path, image_size=0)
