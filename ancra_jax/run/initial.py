"""Weights that a run starts from, other than random ones: ``config.init_from``."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from ancra_jax.config import Config
from ancra_jax.errors import UsageError
from ancra_jax.interop import pytorch, reading
from ancra_jax.ops.files import as_path
from ancra_jax.run import build, sharding
from ancra_jax.run.build import INIT_FROM
from ancra_jax.run.weights import find_weights
from ancra_jax.types import Variables


def load(
    config: Config, network: Any, image_shape: tuple[int, int, int], mesh: Mesh
) -> tuple[Variables, dict[str, Any]]:
    """Load the weights that ``config.init_from`` names, and what identifies them.

    Those of a work directory are of its best checkpoint. A file holds weights by PyTorch's names.

    Raises:
      UsageError: they are of another network, or cannot be read.
    """
    path = build.check_initial(config)
    if as_path(path).is_dir():
        saved = find_weights(path, fields=(INIT_FROM, "--weights"))
        variables = saved.load(network, image_shape, mesh)
        return variables, {"path": path, "step": saved.step, "checksums": _digest(variables)}
    found = pytorch.identify(config.model.name, reading.load_state_dict(path))
    for name, there in (("mean", found.mean), ("std", found.std)):
        ours = getattr(config.model, name)
        if there and there != ours:
            raise UsageError(
                f"--config.model.{name}={ours}: must be {there}, as in {INIT_FROM}={path}"
            )
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    for leaf, shape in flatten_dict(shapes, sep="/").items():
        there = flatten_dict(found.variables, sep="/")[leaf].shape
        if there != shape.shape:
            raise UsageError(
                f"{INIT_FROM}={path}: {leaf} has shape {there}; the configuration's network needs "
                f"{shape.shape}"
            )
    variables = jax.device_put(found.variables, sharding.replicated(mesh))
    return variables, {"path": path, "checksums": _digest(variables)}


def _digest(variables: Variables) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(jax.device_get(variables), sep="/").items()):
        digest.update(name.encode() + leaf.tobytes())
    return digest.hexdigest()[:16]
