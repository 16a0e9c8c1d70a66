"""Settings that are 0 or empty in a configuration, to be chosen by the data, or by the network.

A run chooses them once: its config.json has what was chosen, and so has the run that continues it.
"""

import dataclasses

from ancra_jax.config import Config, shown
from ancra_jax.data import Contents

_NAMES = ("data.image_size", "data.selection_examples", "batch_size")
_SHARE = 8  # an eighth of the examples is held out; an epoch has eight batches, if it can
_MOST_HELD_OUT = 1000
_BATCH_SIZES = (16, 128)  # the smallest, the largest


def choose(
    config: Config,
    contents: Contents | None,
    *,
    devices: int = 1,
    recorded: Config | None = None,
) -> Config:
    """Return a configuration with the settings that were left to be chosen.

    Args:
      config: ``data.image_size``, ``data.selection_examples`` and ``batch_size`` may be 0, and
        ``selection.heads`` empty: with reverse attention it becomes ``'final_and_first'``.
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
    return dataclasses.replace(config, data=data, batch_size=batch_size, selection=selection)


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
    return f"chosen by the images there are: {' '.join(settings)}" if settings else ""


def missing(config: Config) -> list[str]:
    """Return what to say where it is not known how many examples there are."""
    settings = [shown(config, name) for name in _NAMES[1:]]
    reason = f"cannot be chosen: the data set {config.data.name!r} tells no number of examples"
    return [f"{setting}: {reason}" for setting in settings if setting.endswith("=0")]
