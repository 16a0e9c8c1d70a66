"""Reports on runs: tables, figures and pages."""

from ancra_jax.report.write import define_flags, main, report

__all__ = ["define_flags", "main", "report"]
