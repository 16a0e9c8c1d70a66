"""Settings that are 0 or empty in a configuration, to be chosen by the data or by other settings.

A run chooses them once: its config.json has what was chosen, and so has the run that continues it.
"""

import math
from dataclasses import replace

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
    if recorded:
        return _continued(config, recorded)
    heads = config.selection.heads or "final_and_first" * config.model.reverse_attention
    config = replace(config, selection=replace(config.selection, heads=heads))
    if contents is None:
        return config
    image_size = config.data.image_size or contents.image_size
    held_out = config.data.selection_examples
    held_out = held_out or min(max(contents.train // _SHARE, 1), _MOST_HELD_OUT)
    own = contents.train
    if config.data.selection_split == "holdout":
        own -= held_out
    batch_size = config.batch_size or _batch_size(own, devices)
    data = replace(config.data, image_size=image_size, selection_examples=held_out)
    config = replace(config, data=data, batch_size=batch_size)
    every = config.selection.every_epochs or _selection_period(config, contents.train)
    return replace(config, selection=replace(config.selection, every_epochs=every))


def _continued(config: Config, recorded: Config) -> Config:
    """Return a configuration with what it leaves to be chosen as its run has it.

    A run that is older than ``selection.heads`` has none, and gets none.
    """
    data, selection = config.data, config.selection
    return replace(
        config,
        data=replace(
            data,
            image_size=data.image_size or recorded.data.image_size,
            selection_examples=data.selection_examples or recorded.data.selection_examples,
        ),
        batch_size=config.batch_size or recorded.batch_size,
        selection=replace(
            selection,
            heads=selection.heads or recorded.selection.heads,
            every_epochs=selection.every_epochs or recorded.selection.every_epochs,
        ),
    )


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
