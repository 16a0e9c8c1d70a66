"""Training: the loop, the one jitted step, the optimiser."""

from ancra_jax.cli.extras import lazy

__all__ = ["define_flags", "main", "train"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "loop"))
