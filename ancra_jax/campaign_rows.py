"""The rows of a campaign as data, the most valuable first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ancra_jax import config as config_lib
from ancra_jax.config import Config
from ancra_jax.recipes import recipe

DATA = "cifar10"


@dataclass(frozen=True)
class CampaignRow:
    """One training and its evaluation.

    Attributes:
      name: of its work directory.
      method: the argument of ``configs/cifar10.py``.
      overrides: settings that differ from that.
      suite: of ``ancra_jax.evaluate``.
      num_examples: first test examples that are evaluated.
    """

    name: str
    method: str
    overrides: Mapping[str, Any]
    suite: str
    num_examples: int

    def config(self, data_dir: str = "") -> Config:
        """The configuration that it is trained with."""
        config = recipe(DATA, self.method)
        config.update_from_flattened_dict({**self.overrides, "data.data_dir": data_dir})
        return config_lib.from_mapping(config)


# Without TRADES and TRADES-ANCRA there is no conclusion; the parts come next, the baselines last.
ORDER = (
    *("trades", "trades_ancra", "trades_ra", "trades_anc"),
    *("pgd_at", "trades_awp", "natural"),
)
LONG = ("trades", "trades_ancra")
# A short one-cycle training in bfloat16. Rehearsed only: nobody has measured what it reaches.
SHORT_SETTINGS = {
    "epochs": 25,
    "batch_size": 256,
    "model.dtype": "bfloat16",
    "optimizer.schedule": "one_cycle",
    "optimizer.learning_rate": 0.2,
    "optimizer.weight_decay": 5e-4,
    "negative_contrast.random_epochs": 2,
    "awp.warmup_epochs": 2,
    "selection.every_epochs": 5,
}
LONG_SETTINGS = {"model.dtype": "bfloat16", "selection.every_epochs": 5}
# No number of a rehearsal means anything: it shows that a campaign runs to its end.
REHEARSAL_SETTINGS = {
    "epochs": 2,
    "batch_size": 32,
    "log_every_steps": 4,
    "checkpoint_every_steps": 4,
    "data.train_examples": 320,
    "data.selection_examples": 64,
    "model.width": 4,
    "model.dtype": "bfloat16",
    "attack.num_steps": 2,
    "optimizer.schedule": "one_cycle",
    "negative_contrast.random_epochs": 1,
    "awp.warmup_epochs": 1,
    "selection.num_steps": 2,
    "evaluation.num_steps": 4,
}


def campaign_rows(
    *, rehearse: bool = False, suite: str = "all", num_examples: int = 1000
) -> list[CampaignRow]:
    """ResNet-18 on CIFAR-10: short trainings of all methods, then the paper's epochs of two."""
    short, long = SHORT_SETTINGS, LONG_SETTINGS
    if rehearse:
        short, long = REHEARSAL_SETTINGS, {**REHEARSAL_SETTINGS, "epochs": 4}
    return [
        CampaignRow(f"{method}-{length}", method, settings, suite, num_examples)
        for length, methods, settings in (("short", ORDER, short), ("long", LONG, long))
        for method in methods
    ]
