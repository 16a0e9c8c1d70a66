"""The paper's tables: their claims as data, and one command that computes their rows."""

from ancra_jax.ops.extras import lazy

__all__ = ["features", "heads"]

__getattr__ = lazy(__name__, {"features": "figures", "heads": "figures"})
