"""Weights & Biases as a tracker, ``--tracker=wandb``; ``WANDB_PROJECT`` and so on set it up."""

import json
import tempfile
from collections.abc import Mapping

import wandb

from ancra_jax.config.schema import Config, to_mapping
from ancra_jax.ops.files import as_path, write_atomically
from ancra_jax.urls import is_url


class WandbRun:
    """A run there; a training that is continued here goes on with the same run there."""

    def __init__(self, config: Config, workdir: str):
        """Start a run, or continue the one that ``wandb.json`` in the work directory names."""
        file = as_path(workdir) / "wandb.json"
        known = json.loads(file.read_text())["id"] if file.exists() else None
        self._run = wandb.init(
            id=known,
            resume="allow",
            name=as_path(workdir).resolve().name,
            # It keeps files of its own, and can keep them on this machine alone.
            dir=tempfile.mkdtemp() if is_url(workdir) else workdir,
            config=to_mapping(config),
        )
        if known is None:
            write_atomically(file, json.dumps({"id": self._run.id}) + "\n")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the numbers of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Send what was not sent, and end the run until it is continued."""
        self._run.finish()
