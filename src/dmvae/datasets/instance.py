"""Data set `instance`: any map-style data set that a program holds, for `dmvae.run(..., train=..., test=...)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dmvae.datasets import DatasetConfig, Split
from dmvae.datasets.memory import resize, to_channels
from dmvae.datasets.pixels import as_uint8
from dmvae.registry import register
from dmvae.runtime.hashing import digest

HASHED = 64


class Pairs(Protocol):
    """A program's own data set of (image, label, ...); it may have `classes`, and `targets` or `labels`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sequence[Any]: ...


_offered: dict[str, Pairs] = {}


def offer(train: Pairs, test: Pairs) -> str:
    """Make two data sets known to this process; returns the key under which a recipe finds them.

    The key is a digest of their lengths and of some of their items, so that the same data find the stages that they
    finished before.
    """
    key = digest(*(part for data in (train, test) for part in _sketch(data)))
    for split, data in (("train", train), ("test", test)):
        _offered[f"{key} {split}"] = data
    return key


def _sketch(data: Pairs) -> list[object]:
    chosen = np.linspace(0, len(data) - 1, min(HASHED, len(data))).astype(int).tolist()
    return [len(data), *(part for i in chosen for part in (as_image(data[i][0], f"item {i}"), int(data[i][1])))]


@register("instance")
@dataclass(frozen=True, kw_only=True)
class Instance(DatasetConfig):
    """Items (image, label): PIL images, arrays [h, w, c] or tensors [c, h, w], uint8 or float in [0, 1]."""

    key: str
    """What `offer` returned."""

    def build(self, split: Split) -> InstanceDataset:
        data = _offered.get(f"{self.key} {split}")
        if data is None:
            raise ValueError("data: this data set lives in the program that made it; call dmvae.run there again")
        return InstanceDataset(data, self, split)


class InstanceDataset:
    """The items as every data set here has them."""

    def __init__(self, data: Pairs, config: Instance, split: Split) -> None:
        self.data, self.config = data, config
        self.count = min(len(data), config.limit or len(data))
        self.labels = self._labels()
        names = getattr(data, "classes", None)
        self.classes: tuple[str, ...] = (
            tuple(map(str, names)) if names is not None else tuple(map(str, range(int(self.labels.max()) + 1)))
        )
        self.fingerprint = digest(config.key, split, self.count, config.size, config.channels)

    def _labels(self) -> Tensor:
        """Those that the data set names, else those of its items, which are read once for it."""
        known = getattr(self.data, "targets", getattr(self.data, "labels", None))
        if known is None:
            known = [int(self.data[i][1]) for i in range(self.count)]
        return torch.as_tensor(known, dtype=torch.int64)[: self.count]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index][:2]
        pixels = to_channels(as_image(image, f"item {index}")[None], self.config.channels)
        return resize(pixels, self.config.size)[0], int(label)


def as_image(image: object, what: str) -> Tensor:
    """A PIL image, an array [h, w] or [h, w, c], or a tensor [c, h, w] -> uint8 [1 or 3, h, w].

    Raises ValueError for anything else, naming `what`.
    """
    if not isinstance(image, Tensor):
        array = np.array(image)  # a copy: torch warns of memory that cannot be written to
        image = torch.from_numpy(array if array.ndim == 3 else array[..., None]).movedim(-1, 0)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"data: {what} has shape {list(image.shape)}; give 1 or 3 channels, tensors as [c, h, w]")
    return as_uint8(image[None])[0]
