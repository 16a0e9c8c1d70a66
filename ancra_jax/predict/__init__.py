"""What a trained network sees in images."""

from ancra_jax.predict.command import define_flags, main, predict

__all__ = ["define_flags", "main", "predict"]
