"""Training: the loop, the one jitted step, the optimiser."""

from ancra_jax.ops.extras import lazy

__all__ = ["TrainingResult", "define_flags", "main", "run"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "loop") | {"TrainingResult": "result"})
