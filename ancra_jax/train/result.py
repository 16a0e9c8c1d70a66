"""What a training returns to Python code, and shows in a notebook."""

import functools
from dataclasses import dataclass
from typing import Any

from ancra_jax.config import Config
from ancra_jax.results.load import Selected, load_curves, selected
from ancra_jax.results.tables import build, escaped
from ancra_jax.results.tables.columns import SELECTION
from ancra_jax.results.tables.table import code
from ancra_jax.train.step import TrainState


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A training that came to its end.

    Attributes:
      workdir: what ``evaluate.run`` and ``report.run`` take.
      config: all settings, with what was chosen for those that were left to be.
      state: the final one, on the devices.
    """

    workdir: str
    config: Config
    state: TrainState

    @functools.cached_property
    def metrics(self) -> tuple[dict[str, Any], ...]:
        """The records of ``metrics.jsonl``, of training and of the selection split."""
        return load_curves(self.workdir)

    @property
    def selected(self) -> dict[str, Selected]:
        """The accuracies on the selection split by checkpoint: ``'best'``, ``'last'``, ..."""
        return selected(self.metrics)

    def __repr__(self) -> str:
        config = self.config
        what = f"{escaped(config.name)} (seed {config.seed}) on {escaped(config.data.name)}"
        steps = config.selection.num_steps
        parts = [f"**{what}**: trained, in {code(self.workdir)}."]
        if rows := list(self.selected.items()):
            parts.append(build("", SELECTION, rows).markdown())
            through = config.selection.heads == "final_and_first"
            heads = ", also on the first auxiliary head" if through else ""
            parts.append(f"Accuracy in % on the selection split, robust under PGD-{steps}{heads}.")
        return "\n\n".join(parts)

    def _repr_markdown_(self) -> str:
        return repr(self)
