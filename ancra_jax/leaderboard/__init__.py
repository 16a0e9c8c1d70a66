"""Models measured as on RobustBench's leaderboards, and the entries that these are made of."""

from ancra_jax.leaderboard.api import BenchmarkResult, benchmark

__all__ = ["BenchmarkResult", "benchmark"]
