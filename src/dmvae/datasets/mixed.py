"""A data set in an order whose beginning stands for the whole: folders of class folders, and many files of others, hold
one class after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmvae.datasets import Dataset, name_of


def fair_order(labels: Tensor) -> Tensor:
    """int64 [n]: the items with these labels [n] as they come where classes are mixed already, else shuffled, always
    alike. Mixed are those whose neighbours differ at least half as often as by chance, and whose halves have at least
    half of their classes in common."""
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
    """The data set in that order: itself where classes are mixed already."""
    order = fair_order(dataset.labels)
    if torch.equal(order, torch.arange(len(order))):
        return dataset
    many: Callable[[Sequence[int]], tuple[Tensor, Tensor]] | None = getattr(dataset, "__getitems__", None)
    return Shuffled(dataset, order) if many is None else ShuffledInMemory(dataset, order, many)


class Shuffled:
    """The items of a data set in another order [n]."""

    def __init__(self, dataset: Dataset, order: Tensor) -> None:
        self.dataset, self.order = dataset, order
        self.classes, self.labels = dataset.classes, dataset.labels[order]
        self.fingerprint = f"{dataset.fingerprint} shuffled"

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset[int(self.order[index])]

    def name(self, index: int) -> str:
        """As the data set names it."""
        return name_of(self.dataset, int(self.order[index]))


class ShuffledInMemory(Shuffled):
    """The same, read `many` at once."""

    def __init__(self, dataset: Dataset, order: Tensor, many: Callable[[Sequence[int]], tuple[Tensor, Tensor]]) -> None:
        super().__init__(dataset, order)
        self.many = many

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.many(self.order[torch.as_tensor(list(indices))].tolist())
