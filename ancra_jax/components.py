"""From a configuration to the objects of a run: data, network, devices."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ancra_jax import data, models
from ancra_jax.config import Config, DataConfig
from ancra_jax.data import Augmentation, Dataset, Split


class Splits(NamedTuple):
    """What is trained on, what checkpoints are selected by, and the data set's test split."""

    train: Split
    selection: Split
    test: Split


def load_dataset(config: DataConfig) -> Dataset:
    """Loads the configured data set; see ``ancra_jax.data.load`` for errors."""
    return data.load(
        config.name,
        data_dir=config.data_dir or None,
        image_size=config.image_size or None,
        train_examples=config.train_examples or None,
        test_examples=config.test_examples or None,
    )


def split_dataset(dataset: Dataset, config: Config) -> Splits:
    """Sets the selection split aside: from the training split, unless 'test' was asked for."""
    if config.data.selection_split == "test":
        return Splits(dataset.train, dataset.test, dataset.test)
    train, selection = data.hold_out(dataset.train, config.data.selection_examples, config.seed)
    return Splits(train, selection, dataset.test)


def augmentation(config: DataConfig) -> Augmentation:
    """The configured augmentation of training images."""
    return Augmentation(crop_padding=config.crop_padding, horizontal_flip=config.horizontal_flip)


def create_model(config: Config, num_classes: int, *, dtype: str | None = None) -> Any:
    """Creates the configured network, with ``init`` and ``apply`` as Linen modules have; see
    ``ancra_jax.models.create`` for errors."""
    return models.create(
        config.model.name,
        num_classes=num_classes,
        width=config.model.width or None,
        reverse_attention=config.model.reverse_attention,
        dtype=jnp.dtype(dtype or config.model.dtype),
    )
