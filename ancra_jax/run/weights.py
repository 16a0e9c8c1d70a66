"""The weights that a run left: the optimiser's own, or one of their averages."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ancra_jax.config import Config
from ancra_jax.errors import UsageError
from ancra_jax.run import build, sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.averaging import variables_of
from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.types import Variables


def check_weights(config: Config, weights: str, field: str = "--weights") -> None:
    """Check that a run keeps an average of its weights; errors call its choice ``field``."""
    allowed = build.averaging(config).weights
    if weights not in allowed:
        raise UsageError(
            f"{field}={weights}: the run keeps no such average; allowed are {', '.join(allowed)} "
            "(config.ema.decay and config.swa.start_epoch turn the averages on, when training "
            "starts)"
        )


def load_weights(
    workdir: str,
    network: Any,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    *,
    checkpoint: str = "best",
    weights: str = "raw",
    fields: tuple[str, str] = ("--workdir", "--weights"),
) -> tuple[Variables, int, dict[str, Any]]:
    """Load parameters and batch statistics of a run's best or last checkpoint.

    Args:
      workdir: of the run.
      network: that was trained, with ``init``.
      image_shape: height, width, channels.
      mesh: the devices, each of which gets a copy.
      checkpoint: ``'best'``, by the accuracy of these weights on the selection split, or
        ``'last'``.
      weights: one of ``ancra_jax.config.WEIGHTS``.
      fields: what errors call the directory and the choice of weights.

    Returns:
      The variables on the devices, the checkpoint's step, and what was saved beside its state.

    Raises:
      UsageError: there is no such run, checkpoint or average, or it is damaged or of another
        network.
    """
    config = workdir_lib.read_config(workdir, fields[0])
    check_weights(config, weights, fields[1])
    averaging = build.averaging(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    parts = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    if weights != "raw":
        averages = jax.eval_shape(averaging.init, parts["params"], parts["batch_stats"])
        parts["averages"] = {weights: averages[weights]}
    abstract = sharding.abstract_on(parts, sharding.replicated(mesh))
    checkpoints = Checkpoints(f"{workdir}/checkpoints", read_only=True)
    if checkpoint == "best":
        step = checkpoints.best_step(weights)
    else:
        step = max(checkpoints.steps(), default=None)
    if step is None:
        which = checkpoint if weights == "raw" else f"{checkpoint} {weights}"
        raise UsageError(f"{fields[0]}={workdir}: has no {which} checkpoint yet; train first")
    restored, extra = checkpoints.restore(step, abstract)
    averages = restored.get("averages", {})
    if weights == "swa" and not int(averages["swa"]["count"]):
        raise UsageError(
            f"{fields[1]}=swa: the {checkpoint} checkpoint of {workdir} (step {step}) is from "
            f"before the end of epoch {averaging.swa_start_epoch} (config.swa.start_epoch)"
        )
    variables = variables_of(weights, restored["params"], restored["batch_stats"], averages)
    return variables, step, extra
