"""Batches in an order that depends on (seed, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from dmvae.datasets import Items
from dmvae.datasets.cropped import Cropped
from dmvae.datasets.loading import loader
from dmvae.datasets.pixels import as_input
from dmvae.latents.store import LatentSet, Stored
from dmvae.runtime import distributed
from dmvae.runtime.random import Random, seed_of
from dmvae.runtime.words import counted
from dmvae.training.augment import random_crop, random_flip
from dmvae.training.stage import Batch, N, T, TrainingStage


def order(n: int, batch_size: int, key: tuple[object, ...], start: int, steps: int) -> Iterator[list[int]]:
    """This rank's indices of every batch from step `start` on. Shuffled passes over the n items follow one another and
    are cut into batches, so a batch may hold the end of one pass and the start of the next."""
    local = batch_size // distributed.world_size()
    passes: dict[int, Tensor] = {}
    for step in range(start, steps):
        first = step * batch_size + distributed.rank() * local
        met = range(first // n, (first + local - 1) // n + 1)
        passes = {epoch: passes[epoch] if epoch in passes else _shuffled(n, *key, "order", epoch) for epoch in met}
        yield [int(passes[position // n][position % n]) for position in range(first, first + local)]


def _shuffled(n: int, *key: object) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*key)))


def batches(
    stage: TrainingStage[T, N], key: tuple[object, ...], start: int, steps: int, stops: Callable[[], bool]
) -> Generator[Batch, None, None]:
    """This rank's batches on the device from step `start` on; uninitialised tensors [n] for a stage that draws its own
    data. Raises ValueError for a batch that does not fit ranks or data, and KeyboardInterrupt if `stops()` becomes true
    while a batch is late."""
    config, inputs, world = stage.config, stage.inputs, distributed.world_size()
    parts = inputs.sections.run.accumulate if stage.takes_parts else 1
    require_split(f"{stage.name}.batch_size", config.batch_size, world, parts)
    if stage.draws:
        local, device = config.batch_size // world, inputs.device
        for step in range(start, steps):
            labels = torch.empty(local, dtype=torch.int64, device=device)
            yield Batch(torch.empty(local, device=device), labels, step, steps)
        return
    dataset = stage.data()
    require_batch(stage.name, config.batch_size, len(dataset))

    def read(items: Items) -> Iterator[tuple[Tensor, Tensor]]:
        indices = order(len(dataset), config.batch_size, key, start, steps)
        return iter(loader(items, indices, inputs.sections.run.workers, inputs.device, stops))

    items = Stored(dataset) if isinstance(dataset, LatentSet) else dataset
    if isinstance(dataset, Cropped):
        items = dataset.larger
    beside = read(stage.images()) if stage.sees_images else None
    for step, (data, labels) in enumerate(read(items), start):
        if isinstance(dataset, Cropped):
            data = data.to(inputs.device, non_blocking=True)
            data = random_crop(data, dataset.size, Random(*key, "crop", step, device=inputs.device))
        x = as_input(data, inputs.device)
        if isinstance(dataset, LatentSet):
            x = dataset.normalise(x)
        elif inputs.data.flip and stage.flips:
            x = random_flip(x, Random(*key, "flip", step, device=inputs.device))
        images = as_input(next(beside)[0], inputs.device) if beside is not None else None
        yield Batch(x, labels.to(inputs.device, non_blocking=True), step, steps, images)


def require_split(field: str, images: int, ranks: int, parts: int = 1) -> None:
    """Raise ValueError unless a batch divides over the ranks, and each rank's share into `parts`."""
    if images % (ranks * parts):
        over = counted(ranks, "rank") + (f" in {parts} parts each (run.accumulate)" if parts > 1 else "")
        raise ValueError(f"{field}: {images} does not divide over {over}; use a multiple of {ranks * parts}")


def require_batch(stage: str, batch_size: int, items: int) -> None:
    """Raise ValueError where a stage's batch is larger than its data set."""
    if batch_size > items:
        raise ValueError(
            f"{stage}.batch_size: {batch_size} is larger than the data set ({counted(items, 'image')}); "
            f"use at most {items}"
        )
