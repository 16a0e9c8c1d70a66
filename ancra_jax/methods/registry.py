"""Methods by name, in the wrappers that a configuration asks for."""

import difflib
from collections.abc import Callable

from ancra_jax import attacks
from ancra_jax.config.schema import AttackConfig, Config
from ancra_jax.errors import UsageError
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Method
from ancra_jax.methods.distillation import with_distillation
from ancra_jax.methods.negative_contrast import with_negative_contrast
from ancra_jax.methods.udr import with_distributional_robustness
from ancra_jax.methods.weight_perturbation import with_weight_perturbation

Factory = Callable[[Config, AttackSettings], Method]
"""Makes a method of the configuration and the training attack that it describes."""

_factories: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Decorator: makes a factory of methods available as ``config.method.name``.

    Raises:
      UsageError: the name is taken.
    """
    if name in _factories:
        raise UsageError(f"method name {name!r} is registered already")

    def add(factory):
        _factories[name] = factory
        return factory

    return add


def available() -> tuple[str, ...]:
    """Names that ``config.method.name`` may have."""
    return tuple(_factories)


def create(config: Config) -> Method:
    """Builds the method of a configuration, wrappers included.

    Raises:
      UsageError: no such method, or a wrapper that it cannot carry.
    """
    name = config.method.name
    if name not in _factories:
        close = difflib.get_close_matches(name, _factories, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(
            f"config.method.name={name!r}: there is no such method; {hint}"
            f"allowed are {', '.join(_factories)}"
        )
    settings = attack_settings(config.attack, config.method.aux_weight)
    method = _factories[name](config, settings)
    for wrap in WRAPPERS:
        method = wrap(method, config, settings)
    return method


def attack_settings(config: AttackConfig, aux_weight: float) -> AttackSettings:
    """The training attack as a configuration describes it."""
    return AttackSettings(
        objective=config.objective,
        threat_model=attacks.threat_model(config.norm, config.epsilon),
        step_size=config.step_size,
        num_steps=config.num_steps,
        start=config.start,
        aux_weight=aux_weight,
    )


Wrapper = Callable[[Method, Config, AttackSettings], Method]

WRAPPERS: tuple[Wrapper, ...] = (
    with_distillation,
    with_negative_contrast,
    with_distributional_robustness,
    with_weight_perturbation,
)
"""From the innermost to the outermost."""
