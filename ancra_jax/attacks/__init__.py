"""Attacks on any JAX model: a callable pytree, or function, from images in [0, 1] to logits.

This package imports nothing of the rest of the library.
"""

from ancra_jax.attacks.adaptive.api import AdaptiveBudget as AdaptiveBudget
from ancra_jax.attacks.adaptive.api import adaptive as adaptive
from ancra_jax.attacks.adaptive.surrogates import Defence as Defence
from ancra_jax.attacks.adaptive.surrogates import Surrogate as Surrogate
from ancra_jax.attacks.adaptive.surrogates import SurrogateAttack as SurrogateAttack
from ancra_jax.attacks.adaptive.surrogates import register_defence as register_defence
from ancra_jax.attacks.apgd import apgd as apgd
from ancra_jax.attacks.autoattack.api import autoattack as autoattack
from ancra_jax.attacks.autoattack.ensemble import Attack as Attack
from ancra_jax.attacks.autoattack.result import AttackRecord as AttackRecord
from ancra_jax.attacks.autoattack.result import AutoAttackResult as AutoAttackResult
from ancra_jax.attacks.autoattack.result import worst_case as worst_case
from ancra_jax.attacks.diagnostics.api import Diagnosis as Diagnosis
from ancra_jax.attacks.diagnostics.api import diagnose as diagnose
from ancra_jax.attacks.fab import fab as fab
from ancra_jax.attacks.model import example_keys as example_keys
from ancra_jax.attacks.objectives import combine_heads as combine_heads
from ancra_jax.attacks.objectives import cross_entropy as cross_entropy
from ancra_jax.attacks.objectives import dlr as dlr
from ancra_jax.attacks.objectives import kl_divergence as kl_divergence
from ancra_jax.attacks.objectives import margin as margin
from ancra_jax.attacks.objectives import targeted_cross_entropy as targeted_cross_entropy
from ancra_jax.attacks.objectives import targeted_dlr as targeted_dlr
from ancra_jax.attacks.objectives import targeted_margin as targeted_margin
from ancra_jax.attacks.pgd import fgsm as fgsm
from ancra_jax.attacks.pgd import gaussian_start as gaussian_start
from ancra_jax.attacks.pgd import pgd as pgd
from ancra_jax.attacks.square import square as square
from ancra_jax.attacks.success import is_adversarial as is_adversarial
from ancra_jax.attacks.threat_models import L2 as L2
from ancra_jax.attacks.threat_models import Linf as Linf
from ancra_jax.attacks.threat_models import ThreatModel as ThreatModel
from ancra_jax.attacks.threat_models import threat_model as threat_model
from ancra_jax.attacks.types import AttackResult as AttackResult
from ancra_jax.attacks.types import Progress as Progress
from ancra_jax.attacks.types import print_progress as print_progress
