"""The weights that a run left: the optimiser's own, or one of their averages."""

import hashlib
import json
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from ancra_jax.config import Config, to_mapping
from ancra_jax.data import Dataset
from ancra_jax.errors import UsageError
from ancra_jax.ops.pytree import check_finite
from ancra_jax.run import build, sharding, trained
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.averaging import variables_of
from ancra_jax.run.objects import open_checkpoints
from ancra_jax.run.trained import TrainedModel
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


class SavedWeights(NamedTuple):
    """Weights that were found in a checkpoint, and what is known of them before they are loaded."""

    workdir: str
    config: Config  # of the run
    checkpoint: str
    weights: str
    step: int
    facts: dict[str, Any]  # of the data and the training; see ``Checkpoints.facts``
    fields: tuple[str, str]  # what errors call the directory and the choice of weights

    def load(self, network: Any, image_shape: tuple[int, int, int], mesh: Mesh) -> Variables:
        """Load parameters and batch statistics.

        Args:
          network: that was trained, with ``init``.
          image_shape: height, width, channels.
          mesh: the devices, each of which gets a copy.

        Raises:
          UsageError: there is no such average yet, or the checkpoint is damaged, of another
            network, or not finite.
        """
        averaging = build.averaging(self.config)
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
        parts = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
        if self.weights != "raw":
            averages = jax.eval_shape(averaging.init, parts["params"], parts["batch_stats"])
            parts["averages"] = {self.weights: averages[self.weights]}
        abstract = sharding.abstract_on(parts, sharding.replicated(mesh))
        restored, _ = open_checkpoints(self.workdir, read_only=True).restore(self.step, abstract)
        averages = restored.get("averages", {})
        if self.weights == "swa" and not int(averages["swa"]["count"]):
            raise UsageError(
                f"{self.fields[1]}=swa: the {self.checkpoint} checkpoint of {self.workdir} (step "
                f"{self.step}) is from before the end of epoch {averaging.swa_start_epoch} "
                "(config.swa.start_epoch)"
            )
        found = restored["params"], restored["batch_stats"], averages
        variables = variables_of(self.weights, *found)
        check_finite(variables, f"{self.fields[0]}={self.workdir}: step {self.step}")
        return variables


def find_weights(
    workdir: str,
    *,
    checkpoint: str = "best",
    weights: str = "raw",
    fields: tuple[str, str] = ("--workdir", "--weights"),
) -> SavedWeights:
    """Find the weights of a run's best or last checkpoint.

    Args:
      workdir: of the run.
      checkpoint: ``'best'``, by the accuracy of these weights on the selection split, or
        ``'last'``.
      weights: one of ``ancra_jax.config.WEIGHTS``.
      fields: what errors call the directory and the choice of weights.

    Raises:
      UsageError: there is no such run, checkpoint or average, or it is damaged.
    """
    config = workdir_lib.read_config(workdir, fields[0])
    check_weights(config, weights, fields[1])
    checkpoints = open_checkpoints(workdir, read_only=True)
    if checkpoint == "best":
        step = checkpoints.best_step(weights)
    else:
        step = max(checkpoints.steps(), default=None)
    if step is None:
        which = checkpoint if weights == "raw" else f"{checkpoint} {weights}"
        raise UsageError(f"{fields[0]}={workdir}: has no {which} checkpoint yet; train first")
    facts = checkpoints.facts(step)
    return SavedWeights(workdir, config, checkpoint, weights, step, facts, fields)


def load_run(
    workdir: str,
    mesh: Mesh,
    *,
    dataset: Dataset | None = None,
    checkpoint: str = "best",
    weights: str = "raw",
    fields: tuple[str, str] = ("--workdir", "--weights"),
) -> TrainedModel:
    """Load the network of a run, on every device of a mesh.

    Its classes and images are those that the checkpoint names; those of ``dataset`` where one is
    given, or that the run's configuration loads where the checkpoint, of an older version, names
    none. The other arguments and the errors are those of `find_weights`.
    """
    found = find_weights(workdir, checkpoint=checkpoint, weights=weights, fields=fields)
    config, facts = found.config, found.facts
    if dataset is None and "class_names" not in facts:
        dataset = _dataset_of(found)
    if dataset is not None:
        facts = facts | {"class_names": dataset.class_names, "image_shape": dataset.image_shape}
    classes, shape = tuple(facts["class_names"]), tuple(facts["image_shape"])
    network = build.create_network(config, len(classes), dtype="float32")
    info = {
        "config": to_mapping(config),
        "checkpoint": checkpoint,
        "weights": weights,
        "step": found.step,
        "data": found.facts.get("data"),
        "fingerprint": _hash(json.dumps(facts["checksums"], sort_keys=True).encode()),
        "provenance": next(reversed(workdir_lib.read_starts(workdir)), None),
    }
    return TrainedModel(
        found.load(network, shape, mesh),
        replace(config.model, dtype="float32"),
        network,
        classes,
        shape,
        config.evaluation.norm,
        config.evaluation.epsilon,
        info,
    )


def _dataset_of(found: SavedWeights) -> Dataset:
    """Load the data that a run was trained on, where its checkpoint does not name its classes."""
    try:
        return build.load_dataset(found.config.data)
    except UsageError as error:
        reason = str(error).replace("--config.data.", "data.")
        raise UsageError(
            f"{found.fields[0]}={found.workdir}: its checkpoint, of an older version, does not "
            f"name its classes, and its data cannot be read ({reason}); put them back, or write "
            f"where they are now into data.data_dir of {found.workdir}/config.json"
        ) from error


def load_network(
    path: str,
    mesh: Mesh,
    *,
    checkpoint: str = "best",
    weights: str = "raw",
    fields: tuple[str, str],
) -> TrainedModel:
    """Load a network from wherever `trained.load` does, on every device of a mesh.

    Its ``info`` has a ``"fingerprint"`` of the weights.
    """
    path = trained.locate(path, fields[0])
    if not trained.is_file(path):
        return load_run(path, mesh, checkpoint=checkpoint, weights=weights, fields=fields)
    model = trained.load_file(path, checkpoint=checkpoint, weights=weights, field=fields[0])
    variables = jax.device_put(model.variables, sharding.replicated(mesh))
    return replace(
        model, variables=variables, info=(model.info or {}) | {"fingerprint": digest(variables)}
    )


def digest(variables: Variables) -> str:
    """Return a fingerprint of weights."""
    leaves = sorted(flatten_dict(jax.device_get(variables), sep="/").items())
    return _hash(b"".join(name.encode() + leaf.tobytes() for name, leaf in leaves))


def _hash(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:16]
