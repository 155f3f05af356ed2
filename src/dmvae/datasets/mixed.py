"""A data set in an order whose beginning represents the whole: class folders, and many files, hold one class after
another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmvae.datasets import Dataset, Labelled, name_of

UNLIKE = 0.3
"""`spaced` chooses by class if its items' class shares differ from those of all items by at least this, summed over
classes. A class that is left out adds twice its share."""


def fair_order(labels: Tensor) -> Tensor:
    """An order, int64 [n], of items with labels int64 [n] in which classes are mixed: 0 .. n - 1 if they are mixed
    already, else a shuffle with a fixed seed. They are mixed if neighbours differ in class at least half as often as by
    chance, and the class shares of the two halves overlap by at least one half."""
    n = len(labels)
    if n > 1:
        whole, first, second = (_shares(part, int(labels.max())) for part in (labels, *labels.tensor_split(2)))
        by_chance, found = 1 - whole.square().sum(), (labels[1:] != labels[:-1]).double().mean()
        if 0 < by_chance <= 2 * found and torch.minimum(first, second).sum() >= 0.5:
            return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _shares(labels: Tensor, highest: int) -> Tensor:
    return labels.bincount(minlength=highest + 1).double() / len(labels)


def mixed(dataset: Dataset) -> Dataset:
    """The data set in `fair_order`; itself if classes are mixed already."""
    order = fair_order(dataset.labels)
    return dataset if torch.equal(order, torch.arange(len(order))) else Shuffled(dataset, order)


def stratified(labels: Tensor, count: int) -> Tensor:
    """Indices, int64 [min(count, n)], ascending, of items with labels int64 [n]: every class has its share, in whatever
    order classes come."""
    order, count = labels.cpu().argsort(stable=True), min(count, len(labels))
    return order[torch.arange(count) * len(order) // count].sort().values


def spaced(labels: Tensor, count: int) -> Tensor:
    """Indices, int64 [min(count, n)], ascending, of items with labels int64 [n]: evenly spaced. Where that would miss
    classes, as when classes alternate and every k-th item is of a few of them, those of `stratified`."""
    # float32 has not every number from 2^24 on; below, it keeps the choices of earlier versions
    dtype = torch.float32 if len(labels) <= 2**24 else torch.float64
    found = torch.linspace(0, len(labels) - 1, min(count, len(labels)), dtype=dtype).long()
    highest = int(labels.max()) if len(labels) else 0
    gap = _shares(labels[found], highest) - _shares(labels, highest)
    return found if gap.abs().sum() < UNLIKE else stratified(labels, count)


def balanced(count: int, num_classes: int) -> Tensor:
    """int64 [count]: 0, 1, ..., num_classes - 1, 0, 1, ... Fewer than num_classes are evenly spaced: the first classes
    are of one kind in many data sets, as animals in ImageNet."""
    return torch.arange(count) * num_classes // count if count < num_classes else torch.arange(count) % num_classes


class Chosen:
    """The items of a data set at the indices int64 [n], in that order."""

    def __init__(self, dataset: Labelled, index: Tensor) -> None:
        self.dataset, self.index, self.labels = dataset, index, dataset.labels[index]
        many: Callable[[Sequence[int]], tuple[Tensor, Tensor]] | None = getattr(dataset, "__getitems__", None)
        if many is not None:
            self.__getitems__ = lambda items: many(index[torch.as_tensor(items)].tolist())

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        return self.dataset[int(self.index[item])]

    def name(self, item: int) -> str:
        """The name of an item in errors."""
        return name_of(self.dataset, int(self.index[item]))


class Shuffled(Chosen):
    """A data set in another order, int64 [n]."""

    def __init__(self, dataset: Dataset, order: Tensor) -> None:
        super().__init__(dataset, order)
        self.classes, self.fingerprint = dataset.classes, f"{dataset.fingerprint} shuffled"
