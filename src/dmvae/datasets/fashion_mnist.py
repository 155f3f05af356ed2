"""Fashion-MNIST: 60,000 train and 10,000 test images of ten kinds of clothing, 28x28 grey (Xiao et al. 2017)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import pad

from dmvae.datasets import DatasetConfig, Split
from dmvae.datasets.download import data_folders, download, existing_folder
from dmvae.datasets.memory import MemoryDataset, in_memory
from dmvae.ranges import Channels, Pixels
from dmvae.registry import register

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_PREFIX = {"train": "train", "test": "t10k"}


@register("fashion_mnist")
@dataclass(frozen=True, kw_only=True)
class FashionMNIST(DatasetConfig):
    """Reads the four IDX files, plain or .gz."""

    root: str | None = None
    """Folder of the IDX files. null tries $DMVAE_DATA, then /usr/share/datasets/fashion-mnist (Debian's
    package dataset-fashion-mnist), then downloads into ~/.cache/dmvae with torchvision."""
    size: Pixels = 32
    """28 is the original; 32 adds a border of 2 black pixels; other sizes resize the 32x32 image."""
    channels: Channels = 1
    """1 for grey, as the images are; 3 repeats the grey channel."""

    def build(self, split: Split) -> MemoryDataset:
        folder = _find(self.root, _PREFIX[split])
        images_nhw = read_idx(folder, f"{_PREFIX[split]}-images-idx3-ubyte")
        labels = read_idx(folder, f"{_PREFIX[split]}-labels-idx1-ubyte")
        if images_nhw.ndim != 3 or labels.ndim != 1 or len(images_nhw) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"{folder}: {list(images_nhw.shape)} images but {list(labels.shape)} labels: "
                "the files do not belong together; fetch both again"
            )
        if int(labels.max()) >= len(CLASSES):
            raise ValueError(f"{folder}: label {int(labels.max())} is not below {len(CLASSES)}: not Fashion-MNIST")
        images = images_nhw[: self.limit, None]
        if self.size != 28 and images.shape[-2:] == (28, 28):
            images = pad(images, (2, 2, 2, 2))
        return in_memory(images, labels[: self.limit].long(), CLASSES, size=self.size, channels=self.channels)


def read_idx(folder: Path, name: str) -> Tensor:
    """The uint8 tensor in `folder/name` or `folder/name.gz`. Raises ValueError if it is missing or damaged."""
    path = _file(folder, name)
    if path is None:
        raise ValueError(f"{folder}: neither {name} nor {name}.gz is there; add it, or correct data.root")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); delete it and fetch it again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path}: not an IDX file of bytes (it starts with {raw[:4].hex() or 'nothing'}); fetch it again"
        )
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start]) if len(raw) >= start else ()
    if not shape or len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path}: truncated or overlong: {len(raw)} bytes where its header {list(shape)} says "
            f"{start + math.prod(shape)}; delete it and fetch it again"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())


def _file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _find(root: str | None, prefix: str) -> Path:
    """The first folder that holds the split's images, downloaded if need be."""
    tops = [existing_folder(root)] if root is not None else [*data_folders(), DEBIAN]
    for top in tops:
        # torchvision nests its files two folders deep
        for folder in (top, top / "fashion-mnist", top / "fashion_mnist", top / "FashionMNIST" / "raw"):
            if _file(folder, f"{prefix}-images-idx3-ubyte"):
                return folder
    if root is not None:
        raise ValueError(
            f"data.root: {root} has no {prefix}-images-idx3-ubyte(.gz); leave root out to download, or give "
            "data.type: image_folder for a folder of images"
        )
    try:
        folder = download("FashionMNIST", lambda to: torchvision.datasets.FashionMNIST(to, download=True))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"Fashion-MNIST is not in $DMVAE_DATA nor {DEBIAN}, and the download failed ({error}). Either "
            "`apt-get install dataset-fashion-mnist`, or set data.root to a folder with the four IDX files"
        ) from error
    return folder / "raw"
