"""Diagnostics: does an attack fail for want of a gradient?"""

from ancra_jax.attacks.diagnostics.api import Diagnosis as Diagnosis
from ancra_jax.attacks.diagnostics.api import diagnose as diagnose
