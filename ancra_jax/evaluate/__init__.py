"""Which attacks run on a checkpoint, and what is kept of them."""

from ancra_jax.cli.extras import lazy

_HOMES = dict.fromkeys(("SUITES", "define_flags", "main", "run"), "suites")
_HOMES["EvaluationResult"] = "result"
__all__ = sorted(_HOMES)

__getattr__ = lazy(__name__, _HOMES)
