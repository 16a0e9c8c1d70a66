"""Diagnostics: does an attack fail because a gradient is missing?"""

from ancra_jax.attacks.diagnostics.api import Diagnosis as Diagnosis
from ancra_jax.attacks.diagnostics.api import diagnose as diagnose
