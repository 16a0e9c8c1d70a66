"""From a configuration to the objects of a run: data, batches, network."""

import dataclasses
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from ancra_jax import data, methods
from ancra_jax.attacks.threat_models import longest, threat_model
from ancra_jax.config import local_path, path_text
from ancra_jax.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    check_extra_examples,
    extra_examples,
    lengths,
    shown,
)
from ancra_jax.data import Augmentation, BatchPlan, Contents, Dataset, ExtraDraws, Split
from ancra_jax.errors import Problems, UsageError, renamed
from ancra_jax.run import automatic, trained
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.averaging import Averaging
from ancra_jax.run.sharding import batch_sharded
from ancra_jax.types import Outputs

INIT_FROM = "--config.init_from"
TEACHER = "--config.distillation.teacher"
_MOST_WEIGHTS = 2**31  # of a network: 8 GB, and as much for each of momentum and gradients


class Splits(NamedTuple):
    """What a run is trained on and selected by."""

    train: Split  # the data set's own training examples; epochs are counted by them
    selection: Split  # what checkpoints are selected by
    extra: Split | None  # images to mix into the training batches


def check(config: Config, problems: Problems, *, devices: int = 1) -> None:
    """Check all of a configuration that can be checked before anything is loaded or compiled.

    Errors are added to the problems.
    """
    with problems.collect():
        _check_teacher(config, methods.create(config).needs_teacher)
    with problems.collect():
        create_network(config, num_classes=2)
    others = len(problems)
    contents = inspect_dataset(config.data, problems)
    config = automatic.choose(config, contents, devices=devices)
    if contents:
        _check_counts(config, problems, contents.train)
    elif len(problems) == others:
        for message in automatic.missing(config):
            problems.add(message)
    if config.extra_data.fraction:
        field = "--config.extra_data.path"
        with problems.collect():
            path = local_path(config.extra_data.path, field, directory=False)
            if config.extra_data.path and not Path(path).is_file():
                raise UsageError(f"{field}={path}: there is no such file")
    if config.init_from:
        with problems.collect():
            check_initial(config)
    parts = config.optimizer.accumulation_steps or 1
    if parts > 1 and config.batch_size % (devices * parts):
        problems.add(
            f"--config.optimizer.accumulation_steps={parts}: the {config.batch_size // devices} "
            f"examples of a batch on each of {devices} devices must be divisible by it"
        )
    normalised = config.model.batch_norm_parts or 1
    if config.batch_size % (parts * normalised):
        problems.add(
            f"--config.model.batch_norm_parts={normalised}: the {config.batch_size // parts} "
            "examples that are normalised together must be divisible by it"
        )
    sizes = {"batch_size": config.batch_size, "selection.batch_size": config.selection.batch_size}
    for name, size in sizes.items():
        if size % devices:
            problems.add(
                f"--config.{name}={size}: must be divisible by the number of devices, {devices}"
            )


def _check_teacher(config: Config, needed: bool) -> None:
    """Check that a teacher is named if one is needed, and that none is named otherwise.

    A ``distillation.weight`` without a teacher has been refused where the settings are read.
    """
    teacher, weight = config.distillation.teacher, config.distillation.weight
    if needed and teacher:
        path = trained.locate(teacher, TEACHER)
        if not trained.is_file(path):
            workdir_lib.read_config(path, TEACHER)
    elif needed and not weight:
        name = config.method.name
        raise UsageError(f"{TEACHER}='': --config.method.name={name!r} needs a trained network")
    elif teacher and not needed:
        raise UsageError(
            f"{TEACHER}={teacher!r}: is of no use while --config.distillation.weight is 0"
        )


def check_initial(config: Config) -> str:
    """Check what can be told of ``config.init_from`` without loading it; return where it is."""
    path = trained.locate(path_text(config.init_from, INIT_FROM, remote=True), INIT_FROM)
    if not trained.is_file(path):
        source = workdir_lib.read_config(path, INIT_FROM).model
    elif model := saved_initial(path):
        source = model.architecture
    else:
        return path
    for name in ("name", "activation", "mean", "std", "last_block"):
        there, ours = getattr(source, name), getattr(config.model, name)
        if there != ours:
            raise UsageError(
                f"--config.model.{name}={ours!r}: must be {there!r}, as that of {INIT_FROM}={path}"
            )
    return path


def saved_initial(path: str) -> trained.TrainedModel | None:
    """Return the network in a file to start from; None where it has weights by PyTorch's names."""
    if not path.lower().endswith(trained.ENDING):
        return None
    return trained.read_saved(path, f"{INIT_FROM}={path}")


def _check_counts(config: Config, problems: Problems, train: int) -> None:
    if config.data.selection_split == "holdout":
        held_out = config.data.selection_examples
        with problems.collect():
            data.check_held_out(held_out, train, "--config.data.selection_examples")
            train -= held_out
    with problems.collect():
        check_extra_examples(config)  # the size may have been chosen only now
        extra = 0 if config.extra_data.same_steps else extra_examples(config)
        data.batches_per_epoch(train, config.batch_size - extra, "--config.batch_size")


def inspect_dataset(config: DataConfig, problems: Problems) -> Contents | None:
    """Return what there is to load, or None; see ``ancra_jax.data.inspect``."""
    contents, found = None, Problems()
    with problems.collect(), _renamed("data", DataConfig):
        contents = data.inspect(found, **_what_to_load(config))
        found.raise_all()
    return contents


def data_in(config: DataConfig, data_dir: str) -> DataConfig:
    """Return the data of a run, which may now lie in another directory; '' for the run's own."""
    if not data_dir:
        return config
    if config.name == "digits":
        raise UsageError(f"--data_dir={data_dir}: digits come with scikit-learn; leave it out")
    return replace(config, data_dir=path_text(data_dir, "--data_dir", remote=True))


def load_dataset(config: DataConfig) -> Dataset:
    """Load the configured data set; see ``ancra_jax.data.load`` for errors."""
    with _renamed("data", DataConfig):
        return data.load(**_what_to_load(config))


def _what_to_load(config: DataConfig) -> dict[str, Any]:
    return {
        "name": config.name,
        "data_dir": config.data_dir or None,
        "image_size": config.image_size or None,
        "train_examples": config.train_examples or None,
        "test_examples": config.test_examples or None,
        "options": config.options,
    }


def _renamed(group: str, settings: type) -> AbstractContextManager[None]:
    """Let errors about an argument, ``width=x: ...``, speak of the setting of that name."""
    names = "|".join(field.name for field in dataclasses.fields(settings))
    return renamed({rf"^(?=({names})[=.])": f"--config.{group}."})


def split_dataset(dataset: Dataset, config: Config) -> Splits:
    """Set the selection split aside, and load the extra data."""
    train, selection = dataset.train, dataset.test
    if config.data.selection_split == "holdout":
        number, field = config.data.selection_examples, "--config.data.selection_examples"
        train, selection = data.hold_out(train, number, config.seed, field)
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
    count = extra_examples(config)
    own = len(splits.train)
    counted = config.batch_size - (0 if config.extra_data.same_steps else count)
    draws = None
    if splits.extra is not None:
        draws = ExtraDraws(count, own, len(splits.extra), extra_key)
    return BatchPlan(
        batch_size=config.batch_size,
        steps_per_epoch=data.batches_per_epoch(own, counted, "--config.batch_size"),
        augmentation=augmentation(config.data, splits.train.images.shape[1:3]),
        key=step_key,
        sharding=batch_sharded(mesh),
        extra=draws,
    )


def augmentation(config: DataConfig, sides: tuple[int, ...]) -> Augmentation:
    """Return the configured augmentation, for images of such a height and width."""
    chosen = data.POLICIES.get(config.augmentation, Augmentation(config.crop_padding))
    if chosen.largest_shift >= min(sides):
        raise UsageError(
            f"--config.data.augmentation={config.augmentation!r}: cuts off up to "
            f"{chosen.largest_shift} pixels, too many for images of {sides[0]}x{sides[1]}"
        )
    if chosen.crop_padding >= min(sides):
        raise UsageError(
            f"--config.data.crop_padding={chosen.crop_padding}: must be less than the smaller side "
            f"of the images, {min(sides)} pixels, or some crops are of the padding alone"
        )
    erasing = config.random_erasing or chosen.erasing
    return replace(chosen, horizontal_flip=config.horizontal_flip, erasing=erasing)


def averaging(config: Config) -> Averaging:
    """Return the configured averages of the weights."""
    return Averaging(ema_decay=config.ema.decay, swa_start_epoch=config.swa.start_epoch)


def create_network(config: Config, num_classes: int, *, dtype: str | None = None) -> Any:
    """Create the configured network, with ``init`` and ``apply`` as Linen modules have.

    It computes in ``dtype``, or in the configured one where that is None.
    """
    with _renamed("model", ModelConfig):
        return trained.create_network(config.model, num_classes, dtype or config.model.dtype)


def check_lengths(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Refuse a radius or a step that is longer than the way from any image to any other one."""
    for setting, value, norm in lengths(config):
        most = longest(threat_model(norm, 1.0), image_shape)
        if value > most:
            raise UsageError(
                f"{shown(config, setting)}: must be at most {most:g}, the longest distance of "
                f"images of {image_shape} in the norm {norm!r}"
            )


def check_network(
    config: Config, network: Any, image_shape: tuple[int, int, int], num_classes: int
) -> None:
    """Check what a network returns, without computing it.

    Raises:
      UsageError: it is not `ancra_jax.types.Outputs` with a logit for each class, has not the
        auxiliary heads that ``model.reverse_attention`` asks for, or is too large for any device.
    """
    images = jnp.zeros((1, *image_shape))
    with _renamed("model", ModelConfig):
        variables = jax.eval_shape(network.init, jax.random.key(0), images)
        outputs = jax.eval_shape(network.apply, variables, images)
    field, expected = shown(config, "model.name"), (1, num_classes)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    if count > _MOST_WEIGHTS:
        raise UsageError(
            f"{shown(config, 'model.width')}: makes {count:.3g} weights of {field}; must be at "
            f"most {_MOST_WEIGHTS:.3g}"
        )
    if not isinstance(outputs, Outputs):
        raise UsageError(
            f"{field}: the network returns {type(outputs).__name__}; must be "
            "ancra_jax.types.Outputs"
        )
    if outputs.logits.shape != expected or outputs.aux_logits.shape[1:] != expected:
        raise UsageError(
            f"{field}: the network returns logits of shape {outputs.logits.shape} and aux_logits "
            f"of shape {outputs.aux_logits.shape} for one image; must be {expected} and "
            f"(heads, 1, {num_classes})"
        )
    if config.model.reverse_attention and not outputs.aux_logits.shape[0]:
        raise UsageError(
            f"--config.model.reverse_attention=True: the network {config.model.name!r} has none; "
            "must be False for it"
        )
