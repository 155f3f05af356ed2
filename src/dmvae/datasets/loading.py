"""Batches of a data set: given lists of indices, or one pass in order."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


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
