"""The network that a run distils from."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from ancra_jax.config import local_path
from ancra_jax.config.schema import DistillationConfig
from ancra_jax.data import Dataset
from ancra_jax.errors import UsageError
from ancra_jax.methods.core import Model
from ancra_jax.run import build
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.checkpoint import DamagedCheckpointError
from ancra_jax.run.weights import load_weights


class Teacher(NamedTuple):
    """A trained network."""

    model: Model  # in the evaluation phase; a pytree, with its weights on the devices
    fingerprint: str  # identifies the checkpoint's contents


def load_teacher(config: DistillationConfig, dataset: Dataset, mesh: Mesh) -> Teacher | None:
    """Load the configured teacher, of the data set's classes and images; None if there is none."""
    if config.weight == 0:
        return None
    field = "--config.distillation.teacher"
    shape = dataset.image_shape
    directory = local_path(config.teacher, field)
    teacher_config = workdir_lib.read_config(directory, field)
    try:
        network = build.create_network(teacher_config, dataset.num_classes)
        variables, _, extra = load_weights(
            directory,
            network,
            shape,
            mesh,
            checkpoint=config.teacher_checkpoint,
            weights=config.teacher_weights,
            fields=(field, "--config.distillation.teacher_weights"),
        )
    except UsageError as error:
        if isinstance(error, DamagedCheckpointError) or str(error).startswith(field):
            raise
        raise UsageError(
            f"{field}={config.teacher}: must be a network for images of shape {shape} and "
            f"{dataset.num_classes} classes: {error}"
        ) from error
    # Checkpoints of older versions do not say this; their parameters have fitted.
    trained_on = extra.get("image_shape", list(shape))
    classes = extra.get("class_names", list(dataset.class_names))
    if trained_on != list(shape) or classes != list(dataset.class_names):
        raise UsageError(
            f"{field}={config.teacher}: was trained on images of shape {tuple(trained_on)} and "
            f"the {len(classes)} classes {_shortened(classes)}; must be {shape} and "
            f"{_shortened(dataset.class_names)}"
        )
    checksums = json.dumps(extra["checksums"], sort_keys=True)
    fingerprint = hashlib.sha256(checksums.encode()).hexdigest()[:16]
    return Teacher(jax.tree_util.Partial(network.apply, variables), fingerprint)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
