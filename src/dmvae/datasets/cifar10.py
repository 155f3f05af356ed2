"""CIFAR-10: 50,000 train and 10,000 test colour images, 32x32, ten classes (Krizhevsky 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from dmvae.datasets import DatasetConfig, Split
from dmvae.datasets.download import cache_folder, data_folders, download, existing_folder
from dmvae.datasets.memory import MemoryDataset, in_memory
from dmvae.registry import register

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = "cifar-10-batches-py"


@register("cifar10")
@dataclass(frozen=True, kw_only=True)
class CIFAR10(DatasetConfig):
    """Reads parquet files as `datasets` writes them, or the original python batches."""

    root: str | None = None
    """Folder with train*.parquet and test*.parquet (columns image or img, and label), or cifar-10-batches-py, or the
    folder that holds this; its subfolder cifar10 is searched too. null tries $DMVAE_DATA, then downloads into
    ~/.cache/dmvae."""

    def build(self, split: Split) -> MemoryDataset:
        images, labels = self._read(split)
        return in_memory(images, labels, CLASSES, size=self.size, channels=self.channels)

    def _read(self, split: Split) -> tuple[Tensor, Tensor]:
        tops = [existing_folder(self.root)] if self.root is not None else data_folders()
        for top in (place for given in tops for place in (given, given / "cifar10")):
            # the hub keeps shards in data/ or plain_text/
            for folder in (top, top / "data", top / "plain_text"):
                if files := sorted(folder.glob(f"{split}*.parquet")):
                    return read_parquet(files, self.limit)
            for parent in (top, top.parent):
                if (parent / BATCHES).is_dir() and (parent == top or top.name == BATCHES):
                    return _read_batches(parent, split, self.limit)
        if self.root is not None:
            raise ValueError(
                f"data.root: {self.root} has no {split}*.parquet nor {BATCHES}/; leave root out to download, or "
                "give data.type: image_folder for a folder of images"
            )
        try:
            download(BATCHES, lambda to: torchvision.datasets.CIFAR10(to, download=True))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"CIFAR-10 is not in $DMVAE_DATA, and the download failed ({error}). Set data.root to a folder "
                f"with train*.parquet and test*.parquet, or to one with {BATCHES}/"
            ) from error
        return _read_batches(cache_folder(), split, self.limit)


def read_parquet(files: list[Path], limit: int | None) -> tuple[Tensor, Tensor]:
    """uint8 images [n, 3, H, W] and int64 labels [n] of parquet shards, at most `limit`. Raises ValueError for files
    that are damaged or not CIFAR-10, and without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(f"{files[0]} needs pyarrow: pip install 'dmvae[parquet]'") from error

    images: list[Tensor] = []
    labels: list[int] = []
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable parquet file ({error}); fetch it again") from error
        column = next((c for c in ("image", "img") if c in table.column_names), None)
        if column is None or "label" not in table.column_names:
            raise ValueError(f"{file}: columns are {table.column_names}; needs image (a struct with bytes) and label")
        left = None if limit is None else limit - len(images)
        for number, row in enumerate(table.select([column, "label"]).slice(0, left).to_pylist()):
            images.append(_decode(row[column], f"{file}, row {number}"))
            if type(row["label"]) is not int or row["label"] not in range(len(CLASSES)):
                raise ValueError(f"{file}, row {number}: label {row['label']} is no whole number from 0 to 9")
            labels.append(row["label"])
    if not images:
        raise ValueError(f"{files[0].parent}: {len(files)} parquet files without a row; fetch them again")
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{files[0].parent}: images of {len(shapes)} sizes, {sorted(shapes)[:3]}: not CIFAR-10")
    return torch.stack(images), torch.tensor(labels)


def _decode(cell: object, where: str) -> Tensor:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ValueError(f"{where}: holds no image bytes; write the files with the images embedded")
    try:
        # three times as fast as Pillow on images this small, with the same pixels
        image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{where}: not a readable JPEG or PNG ({str(error).splitlines()[0]})") from error
    if image.dtype != torch.uint8:
        raise ValueError(f"{where}: an image of 16 bits: not CIFAR-10; save it with 8")
    return image


def _read_batches(folder: Path, split: Split, limit: int | None) -> tuple[Tensor, Tensor]:
    try:
        data = torchvision.datasets.CIFAR10(str(folder), train=split == "train")
    except RuntimeError as error:
        raise ValueError(f"{folder / BATCHES}: incomplete or damaged; delete the folder and fetch it again") from error
    images = torch.from_numpy(np.ascontiguousarray(data.data[:limit])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(data.targets[:limit])
