"""Which attacks run on a checkpoint, and what is kept of them."""

from ancra_jax.evaluate.result import EvaluationResult
from ancra_jax.evaluate.suites import SUITES, define_flags, main, run

__all__ = ["SUITES", "EvaluationResult", "define_flags", "main", "run"]
