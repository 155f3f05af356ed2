"""Batches in an order that depends on (seed, step) alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from dmvae import distributed
from dmvae.training.random import seed_of


class Order(Sampler):
    """Indices of every batch from step `start` on: one shuffled pass over the data after another, cut
    into global batches, of which this rank gets its part. A batch may straddle two passes."""

    def __init__(self, n: int, batch_size: int, key: tuple, start: int, steps: int) -> None:
        self.n, self.batch_size, self.key = n, batch_size, key
        self.start, self.steps = start, steps
        self._passes: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        local = self.batch_size // distributed.world_size()
        for step in range(self.start, self.steps):
            first = step * self.batch_size + distributed.rank() * local
            yield [self._at(position) for position in range(first, first + local)]

    def _at(self, position: int) -> int:
        epoch = position // self.n
        if epoch not in self._passes:
            generator = torch.Generator().manual_seed(seed_of(*self.key, "order", epoch))
            self._passes = {e: p for e, p in self._passes.items() if e >= epoch - 1}
            self._passes[epoch] = torch.randperm(self.n, generator=generator)
        return int(self._passes[epoch][position % self.n])


def require_batch(stage: str, batch_size: int, items: int) -> None:
    """ValueError where a stage's batch is larger than its data set."""
    if batch_size > items:
        raise ValueError(
            f"{stage}.batch_size: {batch_size} is larger than the data set ({items} images); use at most {items}"
        )


def collate(items: Any) -> tuple[Tensor, Tensor]:
    """A batch from what `__getitems__` returned whole, or from a list of (image, label)."""
    if isinstance(items, tuple):
        return items
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.as_tensor(labels)


def loader(dataset: Any, batches: Any, workers: int, device: torch.device) -> DataLoader:
    """DataLoader over a list or sampler of index batches; data in memory needs no workers."""
    workers = 0 if hasattr(dataset, "__getitems__") else usable(workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_outlive_signals,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )


def usable(workers: int) -> int:
    """As many worker processes as were asked for, but no more than there are processors: torch warns of more."""
    return min(workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _outlive_signals(worker: int) -> None:
    """Ctrl-C, and torchrun's SIGTERM, reach every process; the training still wants to save its state, for which its
    workers must be there. They end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def passes(dataset: Any, batch_size: int, workers: int, device: torch.device, start: int = 0) -> DataLoader:
    """One pass over the data in order, from item `start` on; the last batch may be smaller."""
    n = len(dataset)
    return loader(dataset, [range(i, min(i + batch_size, n)) for i in range(start, n, batch_size)], workers, device)


def as_input(data: Tensor, device: torch.device) -> Tensor:
    """uint8 images become floats in [-1, 1], channels last; latents pass unchanged. On the device."""
    data = data.to(device, non_blocking=True)
    if data.dtype is torch.uint8:
        return data.to(memory_format=torch.channels_last).float().div_(127.5).sub_(1.0)
    return data.float()
