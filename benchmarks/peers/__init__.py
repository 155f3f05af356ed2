"""Others' networks, written as their papers read, for benchmarks to set ours beside."""
