"""Benchmarks against the best alternatives, side by side in one run."""
