"""Reports on runs: tables, figures and pages."""

from ancra_jax.report.write import Report, define_flags, main, run

__all__ = ["Report", "define_flags", "main", "run"]
