"""Rows of a matrix of distances: some at a time, by one process or divided over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmvae.runtime import distributed
from dmvae.runtime.precision import full_precision, without_tf32


def by_rows(
    compute: Callable[[slice], Sequence[Tensor]], x: Tensor, chunk: int, *, shared: bool = False
) -> list[Tensor]:
    """What `compute` finds of the rows of x [n, ...]: it is given `chunk` of them at a time, as a slice, and returns
    tensors of as many rows. Products are taken in all of float32's digits.

    shared: each rank computes some of the chunks, and all get the whole; all must call. Chunks are the same whatever
    the number of ranks, so no bit of the result depends on it.
    """
    n, (rank, world) = len(x), (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    share = -(-n // (chunk * world)) * chunk
    first, last = min(rank * share, n), min((rank + 1) * share, n)
    with without_tf32(x.device), full_precision(x):
        # A rank for which nothing is left computes no row, to know the shapes.
        parts = [compute(slice(i, min(i + chunk, last))) for i in range(first, last, chunk) or [first]]
    own = [torch.cat(column) for column in zip(*parts, strict=True)]
    return own if world == 1 else [gathered(rows, share)[:n] for rows in own]


def gathered(own: Tensor, share: int) -> Tensor:
    """Every rank's rows: all but the last ranks have `share` of them, so padding can only stand at the end."""
    padded = own.new_zeros(share, *own.shape[1:])
    padded[: len(own)] = own
    return distributed.gather(padded)
