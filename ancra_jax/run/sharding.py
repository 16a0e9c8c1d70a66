"""Devices: the batch is split over all of them, the train state and the data set are on each."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ancra_jax.errors import UsageError

DATA_AXIS = "data"


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over all devices of all processes, or over those given."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def abstract_on(tree: PyTree, placement: NamedSharding) -> PyTree:
    """Shapes, dtypes and the sharding to restore a pytree with, in place of its arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), tree
    )


def check_batch_size(batch_size: int, num_examples: int, mesh: Mesh, field: str):
    """Refuses a batch that the devices cannot share or the data set cannot fill.

    Raises:
      UsageError: naming ``field``, its value and what is allowed.
    """
    if batch_size > num_examples:
        raise UsageError(
            f"{field}={batch_size}: larger than the data set of {num_examples} examples"
        )
    if batch_size % mesh.size:
        raise UsageError(
            f"{field}={batch_size}: must be divisible by the number of devices, {mesh.size}"
        )
