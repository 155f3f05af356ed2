"""What a data set gives, looked at before a run: it may be a plugin's."""

from __future__ import annotations

import torch

from dmvae.datasets import Dataset, DatasetConfig, Split
from dmvae.runtime.words import few

TRIED = 8
"""Items that are looked at."""


def require_items(data: DatasetConfig, dataset: Dataset, split: Split, named: tuple[str, ...]) -> None:
    """Raise ValueError where some items are not uint8 images of the recipe's shape with labels of the data's classes,
    those `named` by the training split. They are read one by one and, where the data set has `__getitems__`, many at
    once."""
    n, classes = len(dataset), len(dataset.classes)
    wanted = (data.channels, data.size, data.size)
    if n == 0:
        raise ValueError(f"{data.type!r}: the {split} split has no images; give at least one")
    labels: object = dataset.labels
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or tuple(labels.shape) != (n,):
        raise ValueError(f"{data.type!r}: .labels of the {split} split is {described(labels)}; give int64 [{n}]")
    chosen = sorted({*range(0, n, -(-n // TRIED)), n - 1})
    for i, image, label in _some(data, dataset, chosen):
        if not isinstance(image, torch.Tensor) or image.dtype != torch.uint8 or tuple(image.shape) != wanted:
            raise ValueError(
                f"{data.type!r}: item {i} is {described(image)}; give a uint8 image {list(wanted)}, values 0 to 255"
            )
        number = int(label)  # type: ignore[call-overload]
        if not 0 <= number < classes:
            raise ValueError(f"{data.type!r}: item {i} has the label {label}; there are {classes} classes")
        if number != int(labels[i]):
            raise ValueError(
                f"{data.type!r}: item {i} of the {split} split has the label {label}, and .labels says {labels[i]}; a "
                "transform of labels has to change both"
            )
    for i, first, second in ((i, dataset[i][0], dataset[i][0]) for i in chosen):
        if not first.equal(second):
            raise ValueError(
                f"{data.type!r}: item {i} is another image each time it is read, so no run could be repeated or go on: "
                "leave random transforms out (data.flip mirrors training images)"
            )
    if tuple(dataset.classes) != named:
        raise ValueError(f"{data.type!r}: the {split} split has the classes {few(dataset.classes)}, not {few(named)}")
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < classes:
        raise ValueError(f"{data.type!r}: labels run from {low} to {high}; there are {classes} classes")


def _some(data: DatasetConfig, dataset: Dataset, chosen: list[int]) -> list[tuple[int, object, object]]:
    """(number, image, label) of the chosen items: one by one and, where the data set gives many at once, so too."""
    found: list[tuple[int, object, object]] = []
    for i in chosen:
        item: object = dataset[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"{data.type!r}: item {i} is {described(item)}; give a pair, (uint8 image, label)")
        found.append((i, item[0], item[1]))
    many = getattr(dataset, "__getitems__", None)
    if many is not None:
        both, k = many(chosen), len(chosen)
        if not isinstance(both, tuple) or [len(part) for part in both] != [k, k]:
            raise ValueError(
                f"{data.type!r}: __getitems__ returned {described(both)} for {k} indices; give a pair, (uint8 images "
                f"[{k}, C, H, W], int64 labels [{k}])"
            )
        found += zip(chosen, *both, strict=True)
    return found


def described(value: object) -> str:
    """What something is, in words."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__
