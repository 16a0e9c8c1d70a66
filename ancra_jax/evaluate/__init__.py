"""Which attacks run on a checkpoint, and what is kept of them."""

from ancra_jax.ops.extras import lazy

__all__ = ["SUITES", "EvaluationResult", "define_flags", "main", "run"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "suites") | {"EvaluationResult": "result"})
