"""What sets runs apart, and the short names that tell them from each other."""

from collections.abc import Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from ancra_jax.config.schema import Config, to_mapping
from ancra_jax.run.workdir import FREE_SETTINGS

MAX_SETTINGS = 3


def method_settings(config: Config) -> dict[str, Any]:
    """Return the settings that make a method, by dotted name.

    Neither the seed is among them nor what changes no number.
    """
    free = FREE_SETTINGS - {"max_steps"} | {"seed"}
    settings = flatten_dict(to_mapping(config), sep=".")
    return {name: value for name, value in settings.items() if name not in free}


def labels_of(configs: Sequence[Config]) -> list[str]:
    """Return the methods' names; where a name has several settings, with those that differ."""
    labels = []
    for config in configs:
        namesakes = [other for other in configs if other.name == config.name]
        label = config.name
        if len({other.data.name for other in namesakes}) > 1:
            label += f" on {config.data.name}"
            namesakes = [other for other in namesakes if other.data.name == config.data.name]
        others = [method_settings(other) for other in namesakes]
        differing = [
            f"{name.rpartition('.')[2]}={value}"
            for name, value in method_settings(config).items()
            if any(other.get(name) != value for other in others)
        ]
        labels.append(", ".join([label, *differing[:MAX_SETTINGS]]))
    return labels
