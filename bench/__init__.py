"""Measurements, run from the repository's root as ``python -m bench.scale``; results stand in docs/benchmarks.md."""
