"""Which attacks run on a checkpoint."""

from ancra_jax.evaluate.suites import SUITES as SUITES
from ancra_jax.evaluate.suites import attacks_of_suite as attacks_of_suite
from ancra_jax.evaluate.suites import define_flags as define_flags
from ancra_jax.evaluate.suites import evaluate as evaluate
from ancra_jax.evaluate.suites import load_sources as load_sources
from ancra_jax.evaluate.suites import main as main
