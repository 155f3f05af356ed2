"""A data set held in memory, and the conversion of uint8 batches to a size and channel count.

Shapes: n images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dmvae.runtime.hashing import digest

_CHUNK = 4096  # images converted at a time, so that int32 copies stay small


class MemoryDataset:
    """uint8 images [n, C, H, W] and int64 labels [n], read in batches with one index_select.

    A `size` other than the images' resizes them as they are read: CIFAR-10 at 256 px would take 10 GB.
    `fingerprint` defaults to a hash of the content. Raises ValueError for other types or shapes, and for labels that
    are no classes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        *,
        size: int | None = None,
        fingerprint: str | None = None,
    ):
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}: give uint8 [n, C, H, W]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}: give int64 [{len(images)}]")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())} but there are {len(classes)} classes"
            )
        self.images = images.contiguous()
        self.labels = labels
        self.classes = tuple(classes)
        self.size = size or images.shape[-1]
        self.fingerprint = fingerprint or digest(self.images, labels, self.classes, self.size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return resize(self.images[index][None], self.size)[0], int(self.labels[index])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """The images [n, C, size, size] and labels [n] of a list or tensor of indices."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        index = torch.where(index < 0, index + len(self), index)  # index_select takes no negatives
        return resize(self.images.index_select(0, index), self.size), self.labels.index_select(0, index)


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [n, C, H, W] -> uint8 [n, C, size, size]: central square, antialiased bicubic."""
    side = min(images.shape[-2:])
    if images.shape[-1] != images.shape[-2]:
        images = F.center_crop(images, [side, side])
    if side == size:
        return images
    return F.resize(images, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 [n, 1 or 3, H, W] -> uint8 [n, channels, H, W]: luma (ITU-R 601, as Pillow's "L") or repeats."""
    have = images.shape[1]
    if have == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
    grey = [
        (((chunk.to(torch.int32) * weights).sum(1, keepdim=True) + 0x8000) >> 16).to(torch.uint8)
        for chunk in images.split(_CHUNK)
    ]
    return torch.cat(grey)


def in_memory(images: Tensor, labels: Tensor, classes: Sequence[str], *, size: int, channels: int) -> MemoryDataset:
    """A data set of `size` and `channels`: images are shrunk now, but enlarged as they are read, to save memory."""
    images = to_channels(images, channels)
    if size < min(images.shape[-2:]):
        images = resize(images, size)
    return MemoryDataset(images, labels, classes, size=size)
