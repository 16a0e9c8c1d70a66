"""Reports on runs: tables, figures and pages."""

from ancra_jax.ops.extras import lazy

__all__ = ["Report", "define_flags", "main", "run"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "write"))
