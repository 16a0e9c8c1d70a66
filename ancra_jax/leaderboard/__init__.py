"""Models measured as on RobustBench's leaderboards, and the entries that these are made of."""

from ancra_jax.ops.extras import lazy

__all__ = ["BenchmarkResult", "benchmark"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "api"))
