"""What a configuration allows although few can mean it, to be said before the training begins."""

import operator
from collections.abc import Callable, Collection
from typing import Any

from ancra_jax.config.schema import Config, shown

_WITHOUT_BETA = ("natural", "pgd_at", "pgd_at_adr", "pgd_at_s2o", "ikl")
_NEEDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "negative_contrast": ("negative_contrast.zeta", bool),
    "awp": ("awp.gamma", bool),
    "udr": ("udr.multiplier", bool),
    "extra_data": ("extra_data.fraction", bool),
    "distillation": ("distillation.teacher", bool),
    "self_adaptive": ("method.name", "sat".__eq__),
    "second_order": ("method.name", ("pgd_at_s2o", "trades_s2o").__contains__),
    "method.beta": ("method.name", lambda name: name not in _WITHOUT_BETA),
    "method.aux_weight": ("model.reverse_attention", bool),
    "model.temperature": ("model.attention", "soft".__eq__),
    "optimizer.milestones": ("optimizer.schedule", "piecewise".__eq__),
    "optimizer.decay": ("optimizer.schedule", "piecewise".__eq__),
    "data.crop_padding": ("data.augmentation", operator.not_),
    "data.data_dir": ("data.name", "digits".__ne__),
}
"""Settings and groups of them that change nothing, but where another setting has some values."""


def of_no_use(config: Any, name: str) -> str:
    """Return why a setting of a `Config` or ``ConfigDict`` changes nothing; empty if it may."""
    for needing in (name, name.partition(".")[0]):
        switch, serves = _NEEDS.get(needing, (name, bool))
        if switch != name and not serves(value := operator.attrgetter(switch)(config)):
            return f"--config.{name} is of no use with --config.{switch}={value!r}"
    return ""


def warnings_of(config: Config, changed: Collection[str] = ()) -> list[str]:
    """Return lines on a configuration, of which the settings in ``changed`` were given by name."""
    lines = [of_no_use(config, name) for name in dict.fromkeys(changed)]
    optimizer = config.optimizer
    if optimizer.schedule == "piecewise" and config.epochs < min(optimizer.milestones, default=0):
        lines.append(
            f"{shown(config, 'optimizer.milestones')}: the learning rate stays as it is, as "
            f"training ends before them, with {shown(config, 'epochs')}"
        )
    for name in ("norm", "epsilon"):
        trained, evaluated = f"attack.{name}", f"evaluation.{name}"
        if getattr(config.attack, name) != getattr(config.evaluation, name):
            lines.append(
                f"{shown(config, evaluated)} is what the network will be evaluated with; training "
                f"and selection take {shown(config, trained)}"
            )
    return list(filter(None, lines))
