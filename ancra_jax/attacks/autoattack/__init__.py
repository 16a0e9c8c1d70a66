"""AutoAttack: an ensemble of attacks whose worst case is the robust accuracy."""

from ancra_jax.attacks.autoattack.api import autoattack as autoattack
from ancra_jax.attacks.autoattack.ensemble import Attack as Attack
from ancra_jax.attacks.autoattack.result import AttackRecord as AttackRecord
from ancra_jax.attacks.autoattack.result import AutoAttackResult as AutoAttackResult
from ancra_jax.attacks.autoattack.result import worst_case as worst_case
