"""Weights that a run starts from, other than random ones: ``config.init_from``."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from ancra_jax.config import Config
from ancra_jax.errors import UsageError
from ancra_jax.interop import pytorch, reading
from ancra_jax.run import build, sharding, trained
from ancra_jax.run.build import INIT_FROM
from ancra_jax.run.weights import digest, find_weights
from ancra_jax.types import Variables


def load(
    config: Config, network: Any, image_shape: tuple[int, int, int], mesh: Mesh
) -> tuple[Variables, dict[str, Any]]:
    """Load the weights that ``config.init_from`` names, and what identifies them.

    Those of a work directory are of its best checkpoint. A file is one of `TrainedModel.save`, as
    those of the package are, or holds weights by PyTorch's names.

    Raises:
      UsageError: they are of another network, or cannot be read.
    """
    path = build.check_initial(config)
    origin: dict[str, Any] = {"path": path}
    if not trained.is_file(path):
        saved = find_weights(path, fields=(INIT_FROM, "--weights"))
        variables = saved.load(network, image_shape, mesh)
        origin["step"] = saved.step
    else:
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
        variables = _of_file(config, path, shapes)
        variables = jax.device_put(variables, sharding.replicated(mesh))
    return variables, origin | {"checksums": digest(variables)}


def _of_file(config: Config, path: str, shapes: Variables) -> Variables:
    if model := build.saved_initial(path):
        variables = model.variables
    else:
        found = pytorch.identify(config.model.name, reading.load_state_dict(path))
        for name, there in (("mean", found.mean), ("std", found.std)):
            ours = getattr(config.model, name)
            if there and there != ours:
                raise UsageError(
                    f"--config.model.{name}={ours}: must be {there}, as in {INIT_FROM}={path}"
                )
        variables = found.variables
    trained.check_shapes(flatten_dict(variables, sep="/"), shapes, f"{INIT_FROM}={path}")
    return variables
