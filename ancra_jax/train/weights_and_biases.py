"""Weights & Biases as a tracker, ``--tracker=wandb``; ``WANDB_PROJECT`` and so on set it up."""

import json
from collections.abc import Mapping
from pathlib import Path

import wandb

from ancra_jax.config.schema import Config, to_mapping
from ancra_jax.ops.files import write_atomically


class WandbRun:
    """A run there; a training that is continued here goes on with the same run there."""

    def __init__(self, config: Config, workdir: str):
        """Start a run, or continue the one that ``wandb.json`` in the work directory names."""
        file = Path(workdir) / "wandb.json"
        known = json.loads(file.read_text())["id"] if file.exists() else None
        self._run = wandb.init(
            id=known,
            resume="allow",
            name=Path(workdir).resolve().name,
            dir=workdir,
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
