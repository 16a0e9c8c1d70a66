"""The defences that are looked for in every network."""

from collections.abc import Callable
from typing import Any

from ancra_jax.attacks.adaptive.surrogates import Defence
from ancra_jax.attacks.model import Model
from ancra_jax.registry import Registry

Declare = Callable[[Any, Model], Defence | None]
"""``(network, predict) -> defence``, or None if the network has none of this kind; ``predict`` is
the network's inference with variables bound."""

_DEFENCES: Registry[Declare] = Registry("defence")
register, names = _DEFENCES.register, _DEFENCES.names


def declared(network: Any, predict: Model) -> list[Defence]:
    """Return the defences that registered declarations find in a network."""
    found = [_DEFENCES.get(name)(network, predict) for name in names()]
    return [defence for defence in found if defence is not None]
