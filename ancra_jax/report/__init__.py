"""Tables, figures and pages of results."""

from ancra_jax.report.write import define_flags as define_flags
from ancra_jax.report.write import main as main
from ancra_jax.report.write import report as report
