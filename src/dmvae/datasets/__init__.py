"""Data sets: one file each. `Dataset[i]` is (uint8 image [C, H, W], int label), random access."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from dmvae.datasets import skipped
from dmvae.ranges import Channels, Count, Pixels
from dmvae.registry import Registered, is_ours, require_members

Split = Literal["train", "test"]


class Items(Protocol):
    """What `dmvae.datasets.loading` reads. It may also have `__getitems__(indices)`, which reads a whole batch, and
    `name(index)`, the name of an item in errors."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


def name_of(items: Items, index: int) -> str:
    """The name of an item in errors: its file if the data set gives it, else its number."""
    known = getattr(items, "name", None)
    return known(index) if known is not None else f"item {index}"


class Labelled(Items, Protocol):
    """Items whose labels are known without reading them."""

    @property
    def labels(self) -> Tensor:
        """int64 [n]."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


class Dataset(Protocol):
    """What `DatasetConfig.build` returns: a map-style data set.

    A data set in memory, which reads many items at once faster than one by one, also defines
    `__getitems__(indices) -> (uint8 [n, C, H, W], int64 [n])`; the loader then uses that, and no worker processes.
    """

    classes: tuple[str, ...]
    """Class names; one name for a data set without classes."""
    labels: Tensor
    """int64 [n], the label of every item, available without reading images."""
    fingerprint: str
    """Changes when the content does; it counts in every stage's fingerprint."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Registered):
    """Fields that every data set has. The data count in fingerprints by the `fingerprint` of what `build` returns."""

    required: ClassVar[tuple[str, ...]] = ("build",)

    PLACES: ClassVar[tuple[str, ...]] = ("root", "cache")
    """Fields that say where the data are and how they are kept, not what they are: changing them redoes no stage."""
    are_latents: ClassVar[bool] = False
    """Whether the training set holds latents, float [C, H, W], in place of images."""

    size: Pixels = 32
    """Height and width of the images after resize and centre crop, pixels."""
    channels: Channels = 3
    """1 for grey, 3 for colour: images are converted."""
    limit: Count | None = None
    """Keep at most this many images of a split, for quick runs; null keeps all."""

    flip: bool = False
    """Mirror training images left to right at random."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels is {self.channels}: use 1 (grey) or 3 (colour)")

    def build(self, split: Split) -> Dataset:
        """Open one split. Raises ValueError when the files are missing or unusable."""
        raise NotImplementedError

    def image_folders(self) -> list[Path]:
        """Folders in which every image counts as one of the data set, so that no run may write there."""
        return []

    def held_out(self) -> str:
        """Which images the test split has, in words; "" where the data set itself has one."""
        return ""


_open: dict[str, Dataset] = {}
_refused: dict[str, ValueError] | None = None


def open_dataset(config: DatasetConfig, split: Split) -> Dataset:
    """`config.build(split)`, opened once per process, so that all stages read the same data. Raises ValueError for data
    that cannot be opened, that are more than `limit`, or of a plugin that lacks what a `Dataset` has."""
    key = f"{split} {type(config).__module__} {config.type} {config!r}"  # two plugins may have a class of one name
    if _refused is not None and key in _refused:
        raise ValueError(str(_refused[key]))
    if key not in _open:
        try:
            found = config.build(split)
        except ValueError as error:
            if _refused is not None:
                _refused[key] = error
            raise
        if not is_ours(type(config)):
            require_members(config, found, ("__len__", "__getitem__", "classes", "labels", "fingerprint"), "data: ")
        if config.limit is not None and len(found) > config.limit:
            raise ValueError(f"data.limit: {config.limit}, and {config.type!r} gives {len(found)} images of {split}")
        _open[key] = found
    return _open[key]


@contextmanager
def asked_once() -> Iterator[None]:
    """Inside the block, data that could not be opened are not tried again: every variant of a plan asks for them, and
    waiting for a hub that does not answer takes long."""
    global _refused
    before, _refused = _refused, {}
    try:
        yield
    finally:
        _refused = before


def look_again() -> None:
    """Forget the open data sets: when a program runs another recipe, data or plugins may have changed."""
    _open.clear()
    skipped.forget()


def opened() -> dict[str, Dataset]:
    """The open data sets that are indexes of files, for other ranks. Not those of plugins, which may not pickle."""
    mine = {key: data for key, data in _open.items() if type(data).__module__.startswith("dmvae.")}
    return {key: data for key, data in mine.items() if getattr(data, "is_index", False)}


def adopt(opened: dict[str, Dataset]) -> None:
    """Use the data sets that another rank has `opened`, instead of opening the same files here."""
    _open.update(opened)
