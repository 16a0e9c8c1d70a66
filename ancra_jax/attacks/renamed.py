"""What calls of version 0.1 are written like now; a call in the old form says so."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ancra_jax.attacks.threat_models import ThreatModel

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

KEYWORDS = {"logits_fn": "model", "objective": "loss"}


def explains_old_calls(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function that is called in the form of version 0.1 raise a TypeError with the new one.

    The old forms are keywords that have another name now, and a threat model as third argument.
    """
    name = function.__name__

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for old, new in KEYWORDS.items():
            if old in kwargs:
                raise TypeError(f"{name}({old}=...) is now {name}({new}=...)")
        if len(args) > 2 and isinstance(args[2], ThreatModel):
            raise TypeError(
                f"{name}(objective, images, threat_model) is now {name}(model, images, labels, "
                "threat_model, loss=objective), which returns an AttackResult; the last iterate "
                "alone is attacks.ascend(objective, start, images, threat_model, ...)"
            )
        return function(*args, **kwargs)

    return call
