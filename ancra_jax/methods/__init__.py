"""Training methods: how a batch becomes a loss. See ``ancra_jax.methods.core``."""

from ancra_jax.methods import second_order, self_adaptive, standard  # noqa: F401  (they register)
from ancra_jax.methods.attack import AttackSettings as AttackSettings
from ancra_jax.methods.core import Examples as Examples
from ancra_jax.methods.core import Method as Method
from ancra_jax.methods.core import Plan as Plan
from ancra_jax.methods.core import Terms as Terms
from ancra_jax.methods.core import natural_and_adversarial as natural_and_adversarial
from ancra_jax.methods.registry import available as available
from ancra_jax.methods.registry import create as create
from ancra_jax.methods.registry import register as register
