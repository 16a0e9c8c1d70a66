"""Attacks through what a defence declares of itself, and from other models."""

from ancra_jax.attacks.adaptive.api import BUDGETS as BUDGETS
from ancra_jax.attacks.adaptive.api import AdaptiveBudget as AdaptiveBudget
from ancra_jax.attacks.adaptive.api import adaptive as adaptive
from ancra_jax.attacks.adaptive.surrogates import Defence as Defence
from ancra_jax.attacks.adaptive.surrogates import Surrogate as Surrogate
from ancra_jax.attacks.adaptive.surrogates import SurrogateAttack as SurrogateAttack
