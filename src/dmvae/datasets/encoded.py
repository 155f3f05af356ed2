"""Images that lie encoded in a few large files: decoded once into a memory map, or whenever they are read.

Shapes: n images, C channels, H height, W width.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, Protocol

import torch
from torch import Tensor

from dmvae.datasets import Dataset
from dmvae.datasets.cropped import FilesConfig
from dmvae.datasets.decoded import decoded
from dmvae.datasets.image_file import PIXELS, BrokenImage, decode
from dmvae.datasets.image_scan import path_fraction
from dmvae.datasets.memory import MemoryDataset
from dmvae.datasets.skipped import OnBroken, tell
from dmvae.ranges import Range
from dmvae.runtime.hashing import digest
from dmvae.runtime.words import counted

ENDS = 4096
COMPRESSED = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",
)  # fmt: skip
"""First bytes of PNG, JPEG, WebP, GIF and JPEG 2000. AVIF and HEIC have "ftyp" after the first four bytes."""
MOST_CLASSES = 100_000


class Encoded(Protocol):
    """A split's images, still encoded. It is copied into worker processes, so it holds no open file."""

    labels: Tensor
    """int64 [n]"""

    def read(self, index: int) -> bytes:
        """The encoded image. Raises BrokenImage where there is none."""
        ...

    def where(self, index: int) -> str:
        """File and place of the image, for errors."""
        ...


@dataclass(frozen=True, kw_only=True)
class EncodedConfig(FilesConfig):
    """Fields of data sets of encoded images; each becomes a square of one size.

    The fingerprint covers sizes and ends (see `parts`) of the encoded images, labels, class names and this config, not
    the place of the files. `limit` takes a fixed pseudo-random choice of images.
    """

    PLACES: ClassVar[tuple[str, ...]] = ("root", "cache_gib")

    root: str
    """Where the data are."""
    classes: tuple[str, ...] | str | None = None
    """Names of the classes in the order of their numbers: a list, or a text file with one a line. null takes the names
    in the data, else the numbers found in the train split."""
    cache_gib: Annotated[float, Range(0, 1e6)] = 16.0
    """Data that take at most so many GiB decoded are decoded once, into a file under ~/.cache/dmvae that is then mapped
    into memory; larger data, or all with 0, are decoded at every read. Then an unreadable image is not left out: the
    next readable one of its class takes its place."""
    on_broken: OnBroken = "skip"
    """Unreadable images: skip them with one warning, or stop with an error."""

    def given_classes(self) -> tuple[str, ...] | None:
        """The field `classes`, read if it names a file. Raises ValueError for an unreadable file, or no name."""
        names = self.classes
        if isinstance(names, str):
            try:
                text = Path(names).expanduser().read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"data.classes: {names} cannot be read ({error}); give a text file of one class name a line"
                ) from error
            names = tuple(line.strip() for line in text.splitlines() if line.strip())
        if names is not None and not names:
            raise ValueError("data.classes: names no class; leave it out to take the names in the data")
        return names


def numbered(labels: Tensor, where: str) -> tuple[str, ...]:
    """Class names for numbers without names: "0" to the largest. Raises ValueError for numbers out of range."""
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= MOST_CLASSES:
        raise ValueError(f"{where}: labels run from {low} to {high}: give the numbers of classes, from 0 on")
    return tuple(str(number) for number in range(high + 1))


def check_labels(labels: Tensor, classes: Sequence[str], what: str, where: Callable[[int], str]) -> None:
    """Raise ValueError naming the place of the first label that is no class; `what` says where the names are from."""
    bad = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
    if len(bad):
        label = int(labels[bad[0]])
        fix = "name every class in data.classes, or correct the label"
        if label == -1:
            fix = "-1 means that this split has no labels: choose another"
        raise ValueError(
            f"{where(int(bad[0]))}: label {label} is not in 0 to {len(classes) - 1}, the classes of {what} "
            f"({counted(len(bad), 'such label')} of {len(labels):,}): {fix}"
        )


def open_images(source: Encoded, config: EncodedConfig, classes: tuple[str, ...], content: str) -> Dataset:
    """The split as a data set of images of `config.side`. content: a hash of the encoded images; the fingerprint adds
    labels, names and config to it.

    Raises ValueError for unreadable images where `config.on_broken` is "error", or nothing is left.
    """
    fingerprint = digest(content, source.labels, classes, config.prepared, config.channels, config.on_broken)
    n, each = len(source.labels), config.channels * config.side**2
    if n * each > config.cache_gib * 2**30:
        return LazyImages(source, classes, fingerprint, config)

    def read(index: int) -> Tensor | str:
        try:
            return decode(BytesIO(source.read(index)), config.side, config.channels, config.resampling)
        except BrokenImage as error:
            return str(error)
        except OSError as error:  # an error of the data, not of the cache
            raise ValueError(f"data.root: {source.where(index)} cannot be read: {error}") from error

    key = digest(content, config.prepared, config.channels, PIXELS)
    found = decoded(key, (n, config.channels, config.side, config.side), read)
    if found is None:
        return LazyImages(source, classes, fingerprint, config)
    images, broken = found
    labels = source.labels
    if broken:
        keep = [index for index in range(n) if index not in broken]
        told = [f"{source.where(index)}: {why}" for index, why in broken.items()]
        tell(told, labels, keep, classes, f"{config.root}, from {source.where(0)} on", config.on_broken)
        labels, fingerprint = labels[keep], digest(fingerprint, sorted(broken))
    return MemoryDataset(images, labels, classes, fingerprint=fingerprint)


def parts(file: BinaryIO, size: int) -> tuple[bytes, ...]:
    """Bytes that tell an encoded image from others: (its first 4 KiB, the last 4 KiB of the rest) if it is compressed,
    else (all of it,). The image is the next `size` bytes of `file`.

    The last bytes of a compressed format depend on all bytes before them. The format is known from the content, since
    names can be wrong.
    """
    head = file.read(min(size, ENDS))
    if not head.startswith(COMPRESSED) and head[4:8] != b"ftyp":
        return (head + file.read(size - len(head)),)
    file.seek(max(0, size - len(head) - ENDS), os.SEEK_CUR)
    return head, file.read(min(size - len(head), ENDS))


def ends(file: BinaryIO, size: int) -> bytes:
    """The `parts`, joined for hashing; with the size before them if they are not the whole image."""
    found = b"".join(parts(file, size))
    return found if len(found) == size else b"%d " % size + found


def choose(n: int, limit: int | None) -> range | list[int]:
    """The rows of n that `limit` keeps: a fixed pseudo-random choice, in order, because rows may be sorted by class."""
    if limit is None or limit >= n:
        return range(n)
    return sorted(sorted(range(n), key=lambda row: path_fraction(str(row)))[:limit])


class DecodedWhenRead:
    """Decodes an image whenever it is read; safe in DataLoader workers.

    A damaged image gives the next readable one of its class, with a warning, or a ValueError where `on_broken` is
    "error".
    """

    is_index: ClassVar[bool] = True
    """It holds places and labels, no images: other ranks get a copy instead of searching the files again."""

    def __init__(self, labels: Tensor, classes: tuple[str, ...], fingerprint: str, on_broken: OnBroken):
        self.labels, self.classes, self.fingerprint, self.on_broken = labels, classes, fingerprint, on_broken

    def decode(self, index: int) -> Tensor:
        """Raises BrokenImage, naming the place."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.labels[index])
        index %= len(self)
        try:
            return self.decode(index), label
        except BrokenImage as error:
            place = str(error)
            if self.on_broken == "error":
                raise ValueError(f"unreadable image: {error}. Fix or delete it, or set data.on_broken: skip") from error
            warnings.warn(f"unreadable image, another of its class takes its place: {error}", stacklevel=2)
        for step in range(1, len(self)):
            other = (index + step) % len(self)
            if self.labels[other] == label:
                try:
                    return self.decode(other), label
                except BrokenImage:
                    continue  # its own read warns of it
        raise ValueError(f"class {self.classes[label]!r} has no readable image ({place}); leave it out or fix it")


class LazyImages(DecodedWhenRead):
    """Images of a few large files, decoded at every read."""

    def __init__(self, source: Encoded, classes: tuple[str, ...], fingerprint: str, config: EncodedConfig):
        super().__init__(source.labels, classes, fingerprint, config.on_broken)
        self.source, self.config = source, config

    def decode(self, index: int) -> Tensor:
        config = self.config
        try:
            return decode(BytesIO(self.source.read(index)), config.side, config.channels, config.resampling)
        except BrokenImage as error:
            raise BrokenImage(f"{self.source.where(index)}: {error}") from error
