"""Matching in two dimensions: distributions, how points are moved to them, and pictures. `benchmarks.toy2d` runs it."""
