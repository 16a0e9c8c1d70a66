"""Options of any method, each a wrapper; one that is off returns the method as it is."""

from collections.abc import Callable
from dataclasses import replace

from ancra_jax.config import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Method
from ancra_jax.methods.distillation import distillation
from ancra_jax.methods.negative_contrast import negative_contrast
from ancra_jax.methods.udr import distributional_robustness
from ancra_jax.methods.weight_perturbation import weight_perturbation
from ancra_jax.negatives import RANDOM


def with_distillation(method: Method, config: Config, settings: AttackSettings) -> Method:
    """Distillation from a teacher for ``config.distillation.weight`` above 0."""
    del settings
    if config.distillation.weight == 0:
        return method
    return distillation(
        method,
        weight=config.distillation.weight,
        temperature=config.distillation.temperature,
        aux_weight=config.method.aux_weight,
    )


def with_negative_contrast(method: Method, config: Config, settings: AttackSettings) -> Method:
    """ANC (paper eq. 3-5) for ``config.negative_contrast.zeta`` above 0."""
    contrast = config.negative_contrast
    if contrast.zeta == 0:
        return method
    _needs_an_attack(config, f"config.negative_contrast.zeta={contrast.zeta}")
    if contrast.strategy != RANDOM:
        _needs_epochs_after(config, "negative_contrast.random_epochs", contrast.random_epochs)
    return negative_contrast(
        method,
        # The negatives' attack always descends the cross-entropy (paper eq. 5).
        replace(settings, objective="cross_entropy"),
        zeta=contrast.zeta,
        alpha=contrast.alpha,
        strategy=contrast.strategy,
        targeted=contrast.targeted,
        random_epochs=contrast.random_epochs,
        aux_weight=config.method.aux_weight,
    )


def with_distributional_robustness(
    method: Method, config: Config, settings: AttackSettings
) -> Method:
    """UDR for ``config.udr.multiplier`` above 0."""
    del settings
    udr = config.udr
    if udr.multiplier == 0:
        return method
    _needs_an_attack(config, f"config.udr.multiplier={udr.multiplier}")
    if config.attack.norm != "linf":
        raise UsageError(
            f"config.udr.multiplier={udr.multiplier}: needs config.attack.norm='linf', not "
            f"{config.attack.norm!r}"
        )
    return distributional_robustness(
        method, multiplier=udr.multiplier, rate=udr.rate, interval=udr.interval
    )


def with_weight_perturbation(method: Method, config: Config, settings: AttackSettings) -> Method:
    """AWP for ``config.awp.gamma`` above 0."""
    del settings
    awp = config.awp
    if awp.gamma == 0:
        return method
    _needs_an_attack(config, f"config.awp.gamma={awp.gamma}")
    _needs_epochs_after(config, "awp.warmup_epochs", awp.warmup_epochs)
    return weight_perturbation(method, gamma=awp.gamma, warmup_epochs=awp.warmup_epochs)


Wrapper = Callable[[Method, Config, AttackSettings], Method]

WRAPPERS: tuple[Wrapper, ...] = (
    with_distillation,
    with_negative_contrast,
    with_distributional_robustness,
    with_weight_perturbation,
)
"""From the innermost to the outermost."""


def _needs_an_attack(config, setting):
    if config.method.name == "natural":
        raise UsageError(
            f"{setting}: needs an adversarial method (config.method.name), not 'natural'"
        )


def _needs_epochs_after(config, field, epochs):
    if epochs >= config.epochs:
        raise UsageError(
            f"config.{field}={epochs}: must be less than config.epochs={config.epochs}, or what "
            "comes after them never does"
        )
