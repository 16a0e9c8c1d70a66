"""From a configuration to the objects of a run: data, batches, network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from ancra_jax import data, models
from ancra_jax.config.schema import Config, DataConfig, extra_examples
from ancra_jax.data import Augmentation, BatchPlan, Dataset, ExtraDraws, Split
from ancra_jax.errors import UsageError
from ancra_jax.run.averaging import Averaging
from ancra_jax.run.sharding import batch_sharded


class Splits(NamedTuple):
    """What a run is trained on and selected by."""

    train: Split  # the data set's own training examples; epochs are counted by them
    selection: Split  # what checkpoints are selected by
    extra: Split | None  # images to mix into the training batches


def load_dataset(config: DataConfig) -> Dataset:
    """Load the configured data set; see ``ancra_jax.data.load`` for errors."""
    return data.load(
        config.name,
        data_dir=config.data_dir or None,
        image_size=config.image_size or None,
        train_examples=config.train_examples or None,
        test_examples=config.test_examples or None,
        options=config.options,
    )


def split_dataset(dataset: Dataset, config: Config) -> Splits:
    """Set the selection split aside, and load the extra data."""
    train, selection = dataset.train, dataset.test
    if config.data.selection_split == "holdout":
        train, selection = data.hold_out(train, config.data.selection_examples, config.seed)
    extra = None
    if config.extra_data.fraction > 0:
        extra = data.load_extra(config.extra_data.path, dataset.image_shape, dataset.num_classes)
    return Splits(train, selection, extra)


def batch_plan(
    config: Config, splits: Splits, step_key: Key[Array, ""], extra_key: Key[Array, ""], mesh: Mesh
) -> BatchPlan:
    """Return which batch every step of a run gets; the devices of the mesh share it.

    ``step_key`` is for the augmentation and what the method draws, ``extra_key`` for the choice of
    extra examples.
    """
    sizes = {"batch_size": config.batch_size, "selection.batch_size": config.selection.batch_size}
    for field, size in sizes.items():
        if size % mesh.size:
            raise UsageError(
                f"config.{field}={size}: must be divisible by the number of devices, {mesh.size}"
            )
    count = extra_examples(config)
    own = len(splits.train)
    draws = None
    if splits.extra is not None:
        draws = ExtraDraws(count, own, len(splits.extra), extra_key)
    return BatchPlan(
        batch_size=config.batch_size,
        steps_per_epoch=data.batches_per_epoch(own, config.batch_size - count),
        augmentation=Augmentation(config.data.crop_padding, config.data.horizontal_flip),
        key=step_key,
        sharding=batch_sharded(mesh),
        extra=draws,
    )


def averaging(config: Config) -> Averaging:
    """Return the configured averages of the weights."""
    return Averaging(ema_decay=config.ema.decay, swa_start_epoch=config.swa.start_epoch)


def create_network(config: Config, num_classes: int, *, dtype: str | None = None) -> Any:
    """Create the configured network, with ``init`` and ``apply`` as Linen modules have.

    It computes in ``dtype``, or in the configured one where that is None.
    """
    return models.create(
        config.model.name,
        num_classes=num_classes,
        width=config.model.width or None,
        reverse_attention=config.model.reverse_attention,
        dtype=jnp.dtype(dtype or config.model.dtype),
    )


def check_attention(config: Config, network: Any, image_shape: tuple[int, int, int]) -> None:
    """Check that a network has the auxiliary heads that ``model.reverse_attention`` asks for."""
    images = jnp.zeros((1, *image_shape))
    outputs = jax.eval_shape(
        lambda key: network.apply(network.init(key, images), images), jax.random.key(0)
    )
    if config.model.reverse_attention and not outputs.aux_logits.shape[0]:
        raise UsageError(
            f"config.model.reverse_attention=True: the network {config.model.name!r} has none; "
            "must be False for it"
        )
