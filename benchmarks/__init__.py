"""Timings and quality tables, each a command that prints its table: `python -m benchmarks.NAME`."""
