"""Rows of a matrix of distances: some at a time, by one process or divided over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmvae.runtime import distributed
from dmvae.runtime.console import Bar
from dmvae.runtime.precision import full_precision, without_tf32

LONG = 20_000
"""Rows from which a CPU takes minutes, so that there is a bar."""


def by_rows(compute: Callable[[slice], Sequence[Tensor]], x: Tensor, chunk: int, *, shared: bool) -> list[Tensor]:
    """The results of `compute` for all rows of x [n, ...]: it gets a slice of `chunk` rows at a time, and returns
    tensors of as many rows. Products are computed in full float32 precision.

    shared: each rank computes some of the chunks, and all get the whole; all must call. Chunks do not depend on the
    number of ranks, so no bit of the result does.
    """
    n, (rank, world) = len(x), (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    share = -(-n // (chunk * world)) * chunk
    first, last = min(rank * share, n), min((rank + 1) * share, n)
    parts = []
    with without_tf32(x.device), full_precision(x), Bar("distances", last - first if n >= LONG else 0, "rows") as bar:
        for i in range(first, last, chunk) or [first]:  # a rank without rows takes an empty slice, to know the shapes
            parts.append(compute(slice(i, min(i + chunk, last))))
            bar.step(chunk)
    own = [torch.cat(column) for column in zip(*parts, strict=True)]
    return own if world == 1 else [gathered(rows, share)[:n] for rows in own]


def gathered(own: Tensor, share: int) -> Tensor:
    """The rows of all ranks. Only the last ranks may have fewer than `share` rows, so all padding is at the end."""
    distributed.barrier()  # on the CPU: GPUs would give up on a rank whose share takes `run.timeout` longer
    padded = own.new_zeros(share, *own.shape[1:])
    padded[: len(own)] = own
    return distributed.gather(padded)
