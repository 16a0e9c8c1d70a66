import re
from pathlib import Path

import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.data import registry
from ancra_jax.errors import UsageError


def test_known_names():
    assert {"digits", "cifar10", "cifar100", "tiny_imagenet", "folder"} <= set(data.names())


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(UsageError, match=r"'cifar_10'; known: .*Did you mean 'cifar10'\?"):
        data.load("cifar_10")
    with pytest.raises(UsageError, match=r"'zzz'; known: .*folder"):
        data.load("zzz")


def test_own_source(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_SOURCES", dict(registry._SOURCES))
    seen = []

    @data.register("stripes", resizes=True)
    def load_stripes(options: data.SourceOptions) -> data.Dataset:
        seen.append(options)
        images = np.zeros((8, options.image_size, 4, 1), np.uint8)
        split = data.Split(images, np.arange(8, dtype=np.int32) % 2)
        return data.Dataset("stripes", split, split, ("even", "odd"))

    dataset = data.load("stripes", data_dir=tmp_path, image_size=6, train_examples=4)
    assert dataset.image_shape == (6, 4, 1) and len(dataset.train) == 4
    assert seen == [data.SourceOptions(tmp_path, 6, None)]
    assert "stripes" in data.names()


def test_image_size_is_checked(tmp_path):
    with pytest.raises(UsageError, match="image_size=16: the images of 'digits' have a fixed size"):
        data.load("digits", image_size=16)
    with pytest.raises(UsageError, match="image_size must be at least 1 pixel; got 0"):
        data.load("folder", data_dir=tmp_path, image_size=0)


def test_the_example_of_the_documentation_runs(monkeypatch):
    monkeypatch.setattr(registry, "_SOURCES", dict(registry._SOURCES))
    page = Path(__file__).parents[2] / "docs" / "data.md"
    *_, example = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(example, {})
    assert data.load("stripes").class_names == ("horizontal", "vertical")
