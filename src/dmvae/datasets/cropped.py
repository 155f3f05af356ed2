"""Image files that are resized to more than the data's size: training takes random crops of them, all else the centre.

Shapes: n images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dmvae import config as configs
from dmvae.datasets import Dataset, DatasetConfig, name_of
from dmvae.ranges import Pixels, Resampling
from dmvae.runtime.hashing import digest


@dataclass(frozen=True, kw_only=True)
class FilesConfig(DatasetConfig):
    """Fields of data sets whose images are files of any size."""

    resampling: Resampling = configs.added("square")
    """How images become squares. square: the central square, resized once, antialiased bicubic. adm: as ADM prepares
    ImageNet, and DiT, SiT, LightningDiT, VA-VAE, REPA and RAE after it, with whose figures and statistics yours then
    compare: both sides halved by averaging while the shorter is at least twice the size, one bicubic resize that brings
    it to the size, the central crop; all bit for bit as Pillow does it."""
    resize: Pixels | None = configs.added(None)
    """Height and width, pixels, of the square that each image becomes before it is cropped to `size`: at
    random, anew in each epoch, where a stage trains on images; at the centre elsewhere, as for test images and the
    latents of stages `reference` and `latents`. null: resized to `size`, not cropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None and self.resize <= self.size:
            raise ValueError(
                f"data.resize is {self.resize}: images of data.size {self.size} are cropped out of larger ones; make "
                "it larger, or leave it out"
            )

    @property
    def side(self) -> int:
        """Height and width of images as they are decoded and kept."""
        return self.resize or self.size

    @property
    def prepared(self) -> object:
        """What images are made to be, for fingerprints and keys; of squares, what it was when there were no others."""
        return self.side if self.resampling == "square" else (self.side, self.resampling)

    def cropped(self, decoded: Dataset) -> Dataset:
        """The data set of images of `size`, from one of images of `side`."""
        return decoded if self.resize is None else Cropped(decoded, self.size)


class Cropped:
    """The central `size` x `size` pixels of a data set's images. Training takes random crops of `larger` instead."""

    def __init__(self, larger: Dataset, size: int) -> None:
        self.larger, self.size = larger, size
        self.labels, self.classes = larger.labels, larger.classes
        self.fingerprint = digest(larger.fingerprint, size)
        self.is_index = getattr(larger, "is_index", False)
        many: Callable[[Sequence[int]], tuple[Tensor, Tensor]] | None = getattr(larger, "__getitems__", None)
        if many is not None:
            self.__getitems__ = lambda indices: self._all(many, indices)

    def __len__(self) -> int:
        return len(self.larger)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.larger[index]
        return centre(image, self.size), label

    def name(self, index: int) -> str:
        """The name of an item in errors."""
        return name_of(self.larger, index)

    def _all(
        self, many: Callable[[Sequence[int]], tuple[Tensor, Tensor]], indices: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        images, labels = many(indices)
        return centre(images, self.size), labels


def centre(images: Tensor, size: int) -> Tensor:
    """The central crop: [..., H, W] -> [..., size, size]."""
    top, left = ((length - size) // 2 for length in images.shape[-2:])
    return images[..., top : top + size, left : left + size].contiguous()
