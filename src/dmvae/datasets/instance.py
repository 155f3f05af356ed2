"""Data set `instance`: any map-style data set that a program holds, for `dmvae.run(..., train=..., test=...)`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from dmvae.datasets import DatasetConfig, Split
from dmvae.datasets.encoded import choose
from dmvae.datasets.image_file import flatten
from dmvae.datasets.memory import resize, to_channels
from dmvae.datasets.pixels import unit_to_uint8
from dmvae.registry import register
from dmvae.runtime.hashing import digest
from dmvae.runtime.words import few

HASHED = 64
"""Number of items of each set that are hashed to recognise it."""


class Pairs(Protocol):
    """A program's own map-style data set of (image, label, ...); it may have `classes`, and `targets` or `labels`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sequence[Any]: ...


_offered: dict[str, Pairs] = {}


def offer(train: Pairs, test: Pairs) -> str:
    """Make two data sets known to this process; returns the key under which a recipe finds them.

    The key is a digest of their lengths, of `targets` or `labels` and `classes` if they have these, and of HASHED
    items, so that the same data find stages that were finished with them. Raises ValueError for an invalid set or item,
    for items that change from one reading to the next, and for two sets that name classes differently.
    """
    ours, theirs = _names(train), _names(test)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"data: classes of train and test differ ({few(ours)}; {few(theirs)}), so a label would mean two things: "
            "give both sets the classes of train, and number the labels of test so"
        )
    key = digest(*(part for data in (train, test) for part in _sketch(data)))
    _labels.cache_clear()
    for split, data in (("train", train), ("test", test)):
        _offered[f"{key} {split}"] = data
    return key


def _sketch(data: Pairs) -> list[object]:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ValueError(
            f"data: a {type(data).__name__} has no length, or no items by index; give a map-style data set"
        )
    if len(data) == 0:
        raise ValueError("data: a data set without items; give (image, label) items")
    chosen = np.linspace(0, len(data) - 1, min(HASHED, len(data))).astype(int).tolist()
    known = [told for told in (_known_labels(data), _names(data)) if told is not None]
    items = [as_item(data, i) for i in chosen]
    for i, item in zip(chosen, items, strict=True):
        if digest(*as_item(data, i)) != digest(*item):
            raise ValueError(
                f"data: item {i} is another one each time it is read, so no run could be repeated or go on: leave "
                "random transforms out (data.flip mirrors training images)"
            )
    return [len(data), *known, *(part for item in items for part in item)]


def _names(data: object) -> list[object] | None:
    """`classes` of a data set; where torch's Subset and ConcatDataset have none, those that all sets inside have alike.
    None if there are none."""
    own = getattr(data, "classes", None)
    inside = [data.dataset] if isinstance(data, Subset) else data.datasets if isinstance(data, ConcatDataset) else []
    if own is None and inside:
        own, *others = map(_names, inside)
        return own if all(names == own for names in others) else None
    return None if own is None else list(own)


def _known_labels(data: Pairs) -> list[int] | None:
    """The labels in `targets` or `labels`; None if there are none, or not one for each item."""
    known = getattr(data, "targets", getattr(data, "labels", None))
    if known is None or len(known) != len(data):
        return None
    return [as_label(label, i) for i, label in enumerate(known)]


@register("instance")
@dataclass(frozen=True, kw_only=True)
class Instance(DatasetConfig):
    """Items (image, label): PIL images, arrays [h, w, c] or tensors [c, h, w], uint8 or float in [0, 1]."""

    key: str = ""
    """What `offer` returned."""

    def build(self, split: Split) -> InstanceDataset:
        if f"{self.key} {split}" not in _offered:
            raise ValueError(
                "data: data of the type instance live in the program that made them; call dmvae.run there, with train= "
                "and test="
            )
        return InstanceDataset(self, split)


@cache
def _labels(key: str, split: Split, limit: int | None) -> tuple[Tensor, int]:
    """(int64 labels of the items that `limit` leaves, the number of classes: the highest label + 1). The labels are the
    data set's `targets` or `labels`; else its items are read once for them."""
    data = _offered[f"{key} {split}"]
    rows, known = choose(len(data), limit), _known_labels(data)
    if known is None:
        labels = all_labels = torch.tensor([as_label(_pair(data, i)[1], i) for i in rows])
    else:
        all_labels = torch.tensor(known, dtype=torch.int64)
        labels = all_labels[list(rows)]
    there, named = len(all_labels.unique()), int(all_labels.max()) + 1
    if named > 2 * there + 10:
        warnings.warn(
            f"data: labels up to {named - 1} make {named} classes, of which {there} have images; number them from 0 on "
            "unless you mean that",
            stacklevel=5,
        )
    return labels, named


class InstanceDataset:
    """The program's items as (uint8 [channels, size, size], label)."""

    def __init__(self, config: Instance, split: Split) -> None:
        train, test = (_offered[f"{config.key} {name}"] for name in ("train", "test"))
        self.data, self.config = train if split == "train" else test, config
        self.rows = choose(len(self.data), config.limit)
        self.count = len(self.rows)
        self.labels, _ = _labels(config.key, split, config.limit)
        names: Sequence[object] | None = _names(train) or _names(test)
        if names is None:  # both splits have the same classes
            names = range(max(_labels(config.key, name, config.limit)[1] for name in ("train", "test")))
        # torchvision's ImageNet has a tuple of names for each class
        self.classes = tuple(
            ", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name) for name in names
        )
        limited = () if config.limit is None else ("chosen",)
        self.fingerprint = digest(config.key, split, self.count, config.size, config.channels, *limited)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = as_item(self.data, self.rows[index])
        return resize(to_channels(image[None], self.config.channels), self.config.size)[0], label


def as_item(data: Pairs, index: int) -> tuple[Tensor, int]:
    """Item `index`: (uint8 image [1 or 3, h, w], label). Raises ValueError that names an invalid item."""
    image, label = _pair(data, index)
    return as_image(image, f"item {index}"), as_label(label, index)


def _pair(data: Pairs, index: int) -> tuple[object, object]:
    item = data[index]
    if isinstance(item, Mapping):
        raise ValueError(
            f"data: item {index} is a mapping of {', '.join(map(str, item))}, not (image, label); wrap the data set, "
            "or name its columns in a recipe (data: {type: huggingface})"
        )
    if isinstance(item, Tensor | np.ndarray) or not hasattr(item, "__getitem__") or len(item) < 2:
        what = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
        raise ValueError(f"data: item {index} is {what}, not (image, label); images without classes have the label 0")
    return item[0], item[1]


def as_label(label: object, index: int) -> int:
    """A label as an int: a whole number >= 0 of Python, numpy or torch. Raises ValueError for anything else."""
    try:
        number = label.__index__() if isinstance(label, SupportsIndex) else -1
    except TypeError:  # a tensor of floats, or of several numbers
        number = -1
    if number < 0:
        raise ValueError(f"data: the label of item {index} is {label!r}; give a whole number, 0 or more")
    return number


def as_image(image: object, what: str) -> Tensor:
    """A PIL image, an array [h, w] or [h, w, c], or a tensor [c, h, w] -> uint8 [1 or 3, h, w].

    Raises ValueError for anything else, naming `what`.
    """
    if isinstance(image, Image.Image) and image.mode != "F":  # mode F goes on as an array: floats in [0, 1]
        try:
            image = flatten(image, "L" if image.mode in ("1", "L", "LA", "La") or image.mode[0] == "I" else "RGB")
        except ValueError as error:
            raise ValueError(f"data: {what}: {error}") from error
    if isinstance(image, Tensor):
        shape, pixels = list(image.shape), image
    else:
        array = np.array(image)  # a copy: torch warns of memory that cannot be written to
        if array.dtype.kind not in "uif" or array.ndim not in (2, 3):
            raise ValueError(f"data: {what} is a {type(image).__name__}, which is no image [h, w, c] of numbers")
        shape = list(array.shape)
        pixels = torch.from_numpy(array if array.ndim == 3 else array[..., None]).movedim(-1, 0)
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            f"data: {what} has shape {shape}; give 1 or 3 channels, arrays as [h, w, c] and tensors as [c, h, w]"
        )
    try:
        return unit_to_uint8(pixels[None])[0]
    except ValueError as error:
        raise ValueError(f"data: {what}: {error}") from error
