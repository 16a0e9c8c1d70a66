"""Speed, measured: ``python -m benchmarks``; see docs/performance.md."""
