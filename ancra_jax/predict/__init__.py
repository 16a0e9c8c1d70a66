"""What a trained network sees in images."""

from ancra_jax.ops.extras import lazy

__all__ = ["define_flags", "main", "predict"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "command"))
