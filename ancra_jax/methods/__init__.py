"""Training methods: how a batch becomes a loss.

``@register("mine")`` makes a method of one's own known, `create` builds the one that a
configuration names. What a method is, is in ``ancra_jax.methods.core``; every file beside it holds
one method or one wrapper. docs/methods.md shows how to write one.
"""

from ancra_jax.methods import second_order, self_adaptive, standard  # noqa: F401  (they register)
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Examples, Method, Plan, Terms, natural_and_adversarial
from ancra_jax.methods.registry import available, create, register

__all__ = [
    "AttackSettings",
    "Examples",
    "Method",
    "Plan",
    "Terms",
    "available",
    "create",
    "natural_and_adversarial",
    "register",
]
