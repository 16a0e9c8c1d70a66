"""The network that a run distils from."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from ancra_jax.config import directory_path
from ancra_jax.config.schema import DistillationConfig
from ancra_jax.data import Dataset
from ancra_jax.errors import UsageError
from ancra_jax.methods.core import Model
from ancra_jax.run import build
from ancra_jax.run.checkpoint import DamagedCheckpointError
from ancra_jax.run.weights import find_weights


class Teacher(NamedTuple):
    """A trained network."""

    model: Model  # in the evaluation phase; a pytree, with its weights on the devices
    fingerprint: str  # identifies the checkpoint's contents


def load_teacher(config: DistillationConfig, dataset: Dataset, mesh: Mesh) -> Teacher:
    """Load the configured teacher, of the data set's classes and images."""
    field = "--config.distillation.teacher"
    shape = dataset.image_shape
    directory = directory_path(config.teacher, field)
    found = find_weights(
        directory,
        checkpoint=config.teacher_checkpoint,
        weights=config.teacher_weights,
        fields=(field, "--config.distillation.teacher_weights"),
    )
    facts = found.facts
    try:
        network = build.create_network(found.config, dataset.num_classes)
        variables = found.load(network, shape, mesh)
    except UsageError as error:
        if isinstance(error, DamagedCheckpointError) or str(error).startswith(field):
            raise
        raise UsageError(
            f"{field}={config.teacher}: must be a network for images of shape {shape} and "
            f"{dataset.num_classes} classes: {error}"
        ) from error
    # Checkpoints of older versions do not say this; their parameters have fitted.
    trained_on = facts.get("image_shape", list(shape))
    classes = facts.get("class_names", list(dataset.class_names))
    if trained_on != list(shape) or classes != list(dataset.class_names):
        raise UsageError(
            f"{field}={config.teacher}: was trained on images of shape {tuple(trained_on)} and "
            f"the {len(classes)} classes {_shortened(classes)}; must be {shape} and "
            f"{_shortened(dataset.class_names)}"
        )
    checksums = json.dumps(facts["checksums"], sort_keys=True)
    fingerprint = hashlib.sha256(checksums.encode()).hexdigest()[:16]
    return Teacher(jax.tree_util.Partial(network.apply, variables), fingerprint)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
