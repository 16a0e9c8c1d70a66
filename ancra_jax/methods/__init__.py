"""Training methods: how a batch becomes a loss.

`create` builds the method that a configuration names. What a method is, is in
``ancra_jax.methods.core``; every file beside it holds methods of one kind or one wrapper. A method
of one's own is a factory, in any file that is given to the commands with ``--plugin=FILE.py``::

    @methods.register("mine")
    def mine(config, attack, *, weight: float = 1.0, squared: bool = False):
        def loss(natural, adversarial, examples):
            ...  # of the outputs for the natural and for the adversarial images
            return value, {"loss_mine": value}, examples.state

        return methods.natural_and_adversarial(attack, loss)

``--config.method.name=mine`` names it. The keyword-only arguments are settings of its own, set with
``--config.method.options.weight=2``. docs/adding.md has a whole example.
"""

from ancra_jax.methods import (  # noqa: F401  (they register)
    decoupled_kl,
    helper,
    rectification,
    second_order,
    self_adaptive,
    standard,
)
from ancra_jax.methods.core import (
    AttackSettings,
    Examples,
    Method,
    Plan,
    Terms,
    natural_and_adversarial,
    over_heads,
)
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
    "over_heads",
    "register",
]
