"""Methods by name, in the wrappers that a configuration asks for."""

from collections.abc import Callable

from ancra_jax.config import Config, options_of
from ancra_jax.errors import Problems
from ancra_jax.methods.core import AttackSettings, Method, attack_settings
from ancra_jax.methods.distillation import distillation
from ancra_jax.methods.margin_alignment import margin_alignment
from ancra_jax.methods.negative_contrast import negative_contrast
from ancra_jax.methods.random_masks import random_masks
from ancra_jax.methods.udr import distributional_robustness
from ancra_jax.methods.weight_perturbation import weight_perturbation
from ancra_jax.registry import Registry

Factory = Callable[..., Method]
"""``(config, attack, *, ...) -> method``, with ``attack`` as the configuration describes it.

The keyword-only arguments are the method's own settings, ``config.method.options``.
"""

_methods: Registry[Factory] = Registry("method")
register = _methods.register
"""Decorate a `Factory`, ``@register("mine")``, and its method is known by that name."""
available = _methods.names
"""Return the names of all methods."""

WRAPPERS: tuple[Callable[[Method, Config, AttackSettings], Method], ...] = (
    distillation,
    margin_alignment,
    negative_contrast,
    random_masks,
    distributional_robustness,
    weight_perturbation,
)
"""From the innermost to the outermost; each returns the method itself while it is off."""


def create(config: Config) -> Method:
    """Build the method of a configuration, wrappers included.

    Raises:
      UsageError: no such method, settings that it does not have, or a wrapper that it cannot carry.
    """
    factory = _methods.get(config.method.name, "--config.method.name")
    options = options_of(factory, config.method.options, "--config.method.options")
    attack = attack_settings(config)
    method = factory(config, attack, **options)
    problems = Problems()
    for wrap in WRAPPERS:
        with problems.collect():
            method = wrap(method, config, attack)
    problems.raise_all()
    return method
