"""Programs that every device runs on its own rows of a batch.

An attack has no operation across examples, but a compiler that partitions a program for several
devices does not know: it puts collectives around a ``top_k``, a gather, the end of a ``while``
loop. They cost time, and on CPU, where all devices share one pool of threads, the collectives of
two programs under way can wait for each other for ever. So a batch that is spread over devices is
attacked by the program for one device, on each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

Rows = Int[np.ndarray, "_"]
"""Numbers of some examples, on the host."""


class Layout(NamedTuple):
    """How operands are spread over devices; hashable."""

    mesh: Mesh  # the devices
    rows: PartitionSpec  # of arrays over the batch
    operands: tuple[PartitionSpec, ...]  # of every leaf of the operands: ``rows`` or replicated


def over_several_devices(tree: Any) -> bool:
    """Return whether any array of a pytree is on more than one device."""
    return any(isinstance(x, jax.Array) and len(x.devices()) > 1 for x in jax.tree.leaves(tree))


def where_the_batch_is(tree: Any, batch: jax.Array) -> Any:
    """Copy the arrays of a pytree that are not on the batch's devices to all of these.

    AutoAttack's driver has put the attacked model there; a surrogate's arrays may be elsewhere.
    """
    everywhere = batch.sharding
    if isinstance(everywhere, NamedSharding):
        everywhere = NamedSharding(everywhere.mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        elsewhere = isinstance(leaf, jax.Array) and leaf.devices() != batch.devices()
        return jax.device_put(leaf, everywhere) if elsewhere else leaf

    return jax.tree.map(put, tree)


def spread_like(batch: Any, arrays: Any) -> Any:
    """Spread arrays over the batch as the batch is, those of the host or of one device.

    Without this, nobody could tell that they are over the batch, and no device could work by
    itself. Nothing changes under a transformation, or if several processes share the batch.
    """
    sharding: Any = None if isinstance(batch, jax.core.Tracer) else batch.sharding
    if not _is_split(sharding) or not batch.is_fully_addressable:
        return arrays
    rows = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))

    def put(array: Any) -> Any:
        known = isinstance(array, jax.core.Tracer) or over_several_devices(array)
        return array if known else jax.device_put(array, rows)

    return jax.tree.map(put, arrays)


def layout_of(state: Any, operands: Any) -> Layout | None:
    """Return the layout in which every device can work by itself.

    ``state`` has arrays over the batch, ``operands`` such and others (weights, settings).

    Returns:
      None if there is only one device, or if it is not clear which operands are over the batch: one
      is not split by rows, or is as long as the batch and on no mesh.
    """
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(state)}
    leaves = jax.tree.leaves(operands)
    shardings = [getattr(x, "sharding", None) for x in [*leaves, *jax.tree.leaves(state)]]
    found = {(s.mesh, *s.spec) for s in shardings if s is not None and _is_split(s)}
    if len(lengths) != 1 or len({parts[:2] for parts in found}) != 1:
        return None
    mesh, axes = next(iter(found))[:2]
    if any(axis is not None for _, _, *others in found for axis in others):
        return None
    rows = PartitionSpec(axes)
    specs = []
    for leaf, sharding in zip(leaves, shardings, strict=False):
        if _is_split(sharding):
            specs.append(rows)
        elif isinstance(sharding, NamedSharding) or jnp.shape(leaf)[:1] not in lengths:
            specs.append(PartitionSpec())
        else:
            return None
    return Layout(mesh, rows, tuple(specs))


def batches_of(rows: Rows, sizes: Sequence[int]) -> Iterator[tuple[Rows, int]]:
    """Cut rows into batches of the sizes, which are the largest first, with little padding.

    Yields:
      The rows of a batch, padded with its first one, and how many of them are not padding.
    """
    first = 0
    while first < len(rows):
        padded = -(-(len(rows) - first) // sizes[-1]) * sizes[-1]
        size = next(size for size in sizes if size <= padded)
        part = rows[first : first + size]
        yield np.concatenate([part, np.full(size - len(part), part[0])]), len(part)
        first += size


def placed_rows(tree: Any, layout: Layout | None) -> Any:
    """Put arrays over some of the batch's rows on the devices, as the batch is spread."""
    if layout is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, NamedSharding(layout.mesh, layout.rows))


def placed(operands: Any, layout: Layout | None) -> Any:
    """Put operands for some of the batch's rows on the devices; others are there already."""
    if layout is None:
        return operands
    leaves, structure = jax.tree.flatten(operands)
    pairs = zip(leaves, layout.operands, strict=True)
    leaves = [placed_rows(x, layout) if spec == layout.rows else x for x, spec in pairs]
    return jax.tree.unflatten(structure, leaves)


def _is_split(sharding: Any) -> bool:
    return isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated


def on_own_rows(function: Callable[..., Any], layout: Layout | None) -> Callable[..., Any]:
    """Make every device compute ``function(scalars, state, operands)`` for its own rows only.

    The function returns a pytree of arrays over the batch. ``scalars`` are replicated, the rest is
    spread as ``layout`` says; None leaves the function as it is.
    """
    if layout is None:
        return function

    def spread(scalars: Any, state: Any, operands: Any) -> Any:
        leaves, structure = jax.tree.flatten(operands)

        def local(scalars: Any, state: Any, *leaves: Any) -> Any:
            return function(scalars, state, jax.tree.unflatten(structure, leaves))

        return jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(PartitionSpec(), layout.rows, *layout.operands),
            out_specs=layout.rows,
            check_vma=False,
        )(scalars, state, *leaves)

    return spread
