"""What networks' defences declare to the adaptive attacks; all known ones are looked for."""

from collections.abc import Callable
from typing import Any

from ancra_jax.attacks import Defence
from ancra_jax.attacks.model import Model
from ancra_jax.defences.class_branches import class_branches
from ancra_jax.defences.reverse_attention import branch_maximum, mask_statistics, reverse_attention
from ancra_jax.registry import Registry

__all__ = ["declared", "names", "register"]
__all__ += ["branch_maximum", "class_branches", "mask_statistics", "reverse_attention"]

Declare = Callable[[Any, Model], Defence | None]
"""``(network, predict) -> defence``, or None if the network has none of this kind; ``predict`` is
the network's inference with variables bound."""

_DEFENCES: Registry[Declare] = Registry("defence")
register, names = _DEFENCES.register, _DEFENCES.names
register("reverse_attention")(reverse_attention)
register("class_branches")(class_branches)


def declared(network: Any, predict: Model) -> list[Defence]:
    """Return the defences that registered declarations find in a network."""
    found = [_DEFENCES.get(name)(network, predict) for name in names()]
    return [defence for defence in found if defence is not None]
