"""Commands between work directories and PyTorch: ``ancra import`` and ``ancra export``."""

from ancra_jax.ops.extras import lazy

__all__ = ["export", "import_checkpoint"]

__getattr__ = lazy(__name__, {"import_checkpoint": "from_torch", "export": "to_torch"})
