"""Devices: the batch is split over all of them, the train state and the data set are on each.

They may belong to several processes: a pod of TPU hosts, or the nodes of a cluster.
"""

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

DATA_AXIS = "data"


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return a one-dimensional mesh over the devices given, or over those of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the placement of the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Return the placement that splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def abstract_on(tree: PyTree, placement: NamedSharding) -> PyTree:
    """Return shapes, dtypes and the sharding to restore a pytree with, in place of its arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), tree
    )


def is_main() -> bool:
    """Return whether this process writes the files that one process writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here; return at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
