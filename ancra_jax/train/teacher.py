"""The network that a run distils from."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from ancra_jax.config import Config
from ancra_jax.data import Dataset
from ancra_jax.errors import UsageError
from ancra_jax.methods.core import Model
from ancra_jax.run.build import TEACHER
from ancra_jax.run.trained import create_network
from ancra_jax.run.weights import load_network


class Teacher(NamedTuple):
    """A trained network."""

    model: Model  # in the evaluation phase; a pytree, with its weights on the devices
    fingerprint: str  # identifies its weights


def load_teacher(config: Config, dataset: Dataset, mesh: Mesh) -> Teacher:
    """Load the configured teacher, of the data set's classes and images.

    It computes in the run's own dtype.
    """
    settings = config.distillation
    found = load_network(
        settings.teacher,
        mesh,
        checkpoint=settings.teacher_checkpoint,
        weights=settings.teacher_weights,
        fields=(TEACHER, f"{TEACHER}_weights"),
    )
    shape, classes = dataset.image_shape, tuple(dataset.class_names)
    if found.image_shape != shape or found.classes != classes:
        raise UsageError(
            f"{TEACHER}={settings.teacher}: was trained on images of shape {found.image_shape} and "
            f"the {len(found.classes)} classes {_shortened(found.classes)}; must be {shape} and "
            f"the {len(classes)} classes {_shortened(classes)}"
        )
    network = create_network(found.architecture, len(classes), config.model.dtype)
    model = jax.tree_util.Partial(network.apply, found.variables)
    return Teacher(model, found.info["fingerprint"])


def _shortened(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
