"""Settings that are 0 or empty in a configuration, to be chosen by the data or by other settings.

A run chooses them once: its config.json has what was chosen, and so has the run that continues it.
"""

import dataclasses
import math

from ancra_jax.config import Config, shown
from ancra_jax.data import Contents
from ancra_jax.methods.core import is_adversarial

_NAMES = ("data.image_size", "data.selection_examples", "batch_size", "selection.every_epochs")
_SHARE = 8  # an eighth of the examples is held out; an epoch has eight batches, if it can
_MOST_HELD_OUT = 1000
_BATCH_SIZES = (16, 128)  # the smallest, the largest
_SELECTION_COST = 0.05  # of training's, at most, unless a run would have too few selections
_FEWEST_SELECTIONS = 5


def choose(
    config: Config,
    contents: Contents | None,
    *,
    devices: int = 1,
    recorded: Config | None = None,
) -> Config:
    """Return a configuration with the settings that were left to be chosen.

    Args:
      config: ``data.image_size``, ``data.selection_examples``, ``batch_size`` and
        ``selection.every_epochs`` may be 0, and ``selection.heads`` empty: with reverse attention
        it becomes ``'final_and_first'``.
      contents: what there is to load; where that is not known, settings stay 0.
      devices: what the batch size is made a multiple of.
      recorded: the configuration of the run that is continued, whose settings are taken.
    """
    chosen = recorded.data if recorded else config.data
    image_size = config.data.image_size or chosen.image_size
    held_out = config.data.selection_examples or chosen.selection_examples
    batch_size = config.batch_size or (recorded.batch_size if recorded else 0)
    if contents is not None:
        if not recorded:
            image_size = image_size or contents.image_size
        holds_out = config.data.selection_split == "holdout"
        held_out = held_out or min(max(contents.train // _SHARE, 1), _MOST_HELD_OUT)
        batch_size = batch_size or _batch_size(contents.train - holds_out * held_out, devices)
    data = dataclasses.replace(config.data, image_size=image_size, selection_examples=held_out)
    heads = "final_and_first" * config.model.reverse_attention
    if recorded:  # nothing in a run that is older than the setting
        heads = recorded.selection.heads
    selection = dataclasses.replace(config.selection, heads=config.selection.heads or heads)
    config = dataclasses.replace(config, data=data, batch_size=batch_size, selection=selection)
    every = config.selection.every_epochs
    if recorded:
        every = every or recorded.selection.every_epochs
    elif contents is not None:
        every = every or _selection_period(config, contents.train)
    selection = dataclasses.replace(selection, every_epochs=every)
    return dataclasses.replace(config, selection=selection)


def _selection_period(config: Config, examples: int) -> int:
    """Return after how many epochs it is time for a selection, by counting forward passes.

    A gradient is two of them, for images as for parameters.
    """
    held_out = config.data.selection_examples
    if config.data.selection_split == "holdout":
        examples = max(examples - held_out, 1)
    in_training = 3
    if is_adversarial(config):
        with_negatives = config.negative_contrast.zeta > 0 and config.negative_contrast.targeted
        in_training += 2 * config.attack.num_steps * (1 + with_negatives)
    attacked = 2 if config.selection.heads == "final_and_first" else 1
    in_selection = 1 + attacked * (2 * config.selection.num_steps + 1)
    share = held_out * in_selection / (examples * in_training)
    most = max(config.epochs // _FEWEST_SELECTIONS, 1)
    return min(math.ceil(share / _SELECTION_COST), most)


def _batch_size(examples: int, devices: int) -> int:
    """Return a power of two, or so many examples as there are, a multiple of the devices."""
    smallest, largest = _BATCH_SIZES
    size = largest
    while size > smallest and size * _SHARE > examples:
        size //= 2
    size = max(min(size, examples), 1)
    return max(size // devices, 1) * devices


def describe(given: Config, chosen: Config) -> str:
    """Return the settings that were chosen, as one would give them; empty if there are none."""
    settings = [shown(chosen, name) for name in _NAMES if shown(chosen, name) != shown(given, name)]
    return f"chosen by the images and the other settings: {' '.join(settings)}" if settings else ""


def missing(config: Config) -> list[str]:
    """Return what to say where it is not known how many examples there are."""
    settings = [shown(config, name) for name in _NAMES[1:3]]
    reason = f"cannot be chosen: the data set {config.data.name!r} tells no number of examples"
    return [f"{setting}: {reason}" for setting in settings if setting.endswith("=0")]
