"""Which attacks run on a checkpoint, and what is kept of them."""

from ancra_jax.evaluate.suites import SUITES, define_flags, evaluate, main

__all__ = ["SUITES", "define_flags", "evaluate", "main"]
