"""What the C library does with memory that tensors on the CPU no longer need."""

from __future__ import annotations

import ctypes
import os

# of glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
LARGEST = 2**30
"""Bytes; a larger block is still a mapping of its own, and goes back to the system when it is freed."""
AT_A_TIME = 2**26
"""Bytes by which the heap grows."""
BY_HAND = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
"""Variables by which a user has set the same."""


def keep_freed_memory() -> None:
    """Let this process and its forks keep the memory that they free, and use it again.

    Otherwise glibc asks the system for every block of 32 MiB or more and gives it back at once, and the system clears
    each page anew: almost half of the time of a network's features on a CPU (`python -m benchmarks.heap`). What the
    environment says of it stays, and another C library is left alone."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name in os.environ for name in BY_HAND):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Older versions refuse a threshold above 32 MiB, and no longer find their own once another option is set.
        mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(TOP_PAD, AT_A_TIME)
