"""A tree of arrays as few bytes: what is carried of a checkpoint from one machine to the next.

The bytes of an array are sorted by significance before they are deflated: signs and exponents of
weights repeat, the rest is noise. Float32 shrinks to about five sixths so, bfloat16 to two thirds.

Rounded, parameters are bfloat16, off by 2**-8 of their value at most. Momentum is float8 (e5m2),
off by an eighth: what it holds of a gradient is halved every seven steps.
"""

import io
import json
import zipfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt8

from ancra_jax.errors import UsageError

ROUNDED = {"params": jnp.bfloat16, "opt_state": jnp.float8_e5m2}
MOMENTUM_SCALE = 2.0**10  # float8 then holds 1.5e-8 to 56
_TREE = "tree"


def encode(tree: dict[str, Any], *, rounded: bool) -> bytes:
    """Packs arrays.

    Args:
      tree: NumPy arrays in dictionaries and lists, as ``Checkpoints.read`` returns them.
      rounded: whether the float32 arrays of ``params`` and ``opt_state`` are; all others, running
        statistics of batch normalisation among them, stay as they are.
    """
    if rounded:
        tree = {key: _round(part, ROUNDED.get(key)) for key, part in tree.items()}
    leaves, structure = jax.tree.flatten(tree)
    description = {
        "leaves": [[str(leaf.dtype), list(leaf.shape)] for leaf in leaves],
        "tree": jax.tree.unflatten(structure, range(len(leaves))),
    }
    arrays = {str(position): _planes(leaf) for position, leaf in enumerate(leaves)}
    arrays[_TREE] = np.frombuffer(json.dumps(description).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def decode(data: bytes) -> PyTree:
    """The inverse of ``encode``; what was rounded is float32 again.

    Raises:
      UsageError: the bytes are damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            description = json.loads(file[_TREE].tobytes())
            leaves = [
                _array(file[str(position)], *leaf)
                for position, leaf in enumerate(description["leaves"])
            ]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"a packed checkpoint is damaged: {error}") from error
    return jax.tree.map(lambda position: leaves[position], description["tree"])


def _round(part: PyTree, dtype: Any) -> PyTree:
    def round_leaf(leaf):
        if dtype is None or leaf.dtype != np.float32:
            return leaf
        return (leaf * MOMENTUM_SCALE if dtype == jnp.float8_e5m2 else leaf).astype(dtype)

    return jax.tree.map(round_leaf, part)


def _planes(leaf: np.ndarray) -> UInt8[np.ndarray, "itemsize size"]:
    flat = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return np.ascontiguousarray(flat.reshape(-1, leaf.dtype.itemsize).T)


def _array(planes: UInt8[np.ndarray, "itemsize size"], dtype: str, shape: list[int]) -> np.ndarray:
    array = np.ascontiguousarray(planes.T).view(jnp.dtype(dtype)).reshape(shape)
    if array.dtype == jnp.float8_e5m2:
        return array.astype(np.float32) / np.float32(MOMENTUM_SCALE)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
