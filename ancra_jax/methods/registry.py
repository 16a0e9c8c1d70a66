"""Methods by name, composed from a configuration."""

import difflib
from collections.abc import Callable

from ancra_jax import attacks
from ancra_jax.config import AttackConfig, Config
from ancra_jax.errors import UsageError
from ancra_jax.methods import base
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Method
from ancra_jax.methods.negative_contrast import negative_contrast

Factory = Callable[[Config, AttackSettings, float], Method]
"""Takes the configuration, the training attack and the weight of the auxiliary heads."""

_FACTORIES: dict[str, Factory] = {
    "natural": lambda config, settings, aux_weight: base.natural(aux_weight),
    "pgd_at": lambda config, settings, aux_weight: base.pgd_at(settings, aux_weight),
    "trades": lambda config, settings, aux_weight: base.trades(
        settings, config.method.beta, aux_weight
    ),
}


def register(name: str) -> Callable[[Factory], Factory]:
    """Decorator: makes a factory of methods available as ``config.method.name``."""

    def add(factory):
        _FACTORIES[name] = factory
        return factory

    return add


def create(config: Config) -> Method:
    """Builds the method of a configuration, wrappers included.

    Raises:
      UsageError: no such method, or a wrapper that it cannot carry.
    """
    name = config.method.name
    if name not in _FACTORIES:
        close = difflib.get_close_matches(name, _FACTORIES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(
            f"config.method.name={name!r}: there is no such method; {hint}"
            f"allowed are {', '.join(_FACTORIES)}"
        )
    aux_weight = config.method.aux_weight
    settings = attack_settings(config.attack, aux_weight)
    method = _FACTORIES[name](config, settings, aux_weight)
    contrast = config.negative_contrast
    if contrast.zeta > 0:
        if name == "natural":
            raise UsageError(
                f"config.negative_contrast.zeta={contrast.zeta}: needs an adversarial method "
                "(config.method.name), not 'natural'"
            )
        method = negative_contrast(
            method,
            # The negatives' attack always descends the cross-entropy (paper eq. 5).
            attack_settings(config.attack, aux_weight, objective="cross_entropy"),
            zeta=contrast.zeta,
            alpha=contrast.alpha,
            strategy=contrast.strategy,
            targeted=contrast.targeted,
            random_epochs=contrast.random_epochs,
            aux_weight=aux_weight,
        )
    return method


def attack_settings(
    config: AttackConfig, aux_weight: float, objective: str | None = None
) -> AttackSettings:
    """The training attack as a configuration describes it."""
    return AttackSettings(
        objective=objective or config.objective,
        threat_model=attacks.threat_model(config.norm, config.epsilon),
        step_size=config.step_size,
        num_steps=config.num_steps,
        start=config.start,
        aux_weight=aux_weight,
    )
