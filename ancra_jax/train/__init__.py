"""Training: the loop, the one jitted step, the optimiser."""

from ancra_jax.cli.extras import lazy

_HOMES = dict.fromkeys(("define_flags", "main", "run"), "loop")
_HOMES["TrainingResult"] = "result"
__all__ = sorted(_HOMES)

__getattr__ = lazy(__name__, _HOMES)
