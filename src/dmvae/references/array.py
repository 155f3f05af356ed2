"""Reference `array`: vectors, features or latents from a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from dmvae.references import Surroundings
from dmvae.references.data import DataConfig
from dmvae.references.files import parquet_files, read_column
from dmvae.registry import register
from dmvae.runtime.hashing import content_hash
from dmvae.spelling import nearest

SUFFIXES = (".npy", ".safetensors", ".parquet")
CHECKED = 4096


@register("array")
@dataclass(frozen=True, kw_only=True)
class ArrayReference(DataConfig):
    """Rows of an array, standardised per channel: latents [n, C, H, W] or [n, C H W], used as they are; features
    [n, d, h, w], resized and reduced to the latents' shape; or vectors [n, d] with d > C H W, each reduced to C H W
    components. Without `labels`, labels are drawn at random and carry no information."""

    path: str
    """A .npy file; a .safetensors file; a .parquet file, or a folder of them, with one (nested) list a row."""
    key: str = "latents"
    """Name of the tensor or column."""
    labels: str | None = None
    """Name of the tensor or column of labels, 0 to num_classes - 1; for a .npy file, the path of another .npy file."""

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def check(self, inputs: Surroundings) -> None:
        array = self._read(self.key)
        low, high = math.inf, -math.inf
        for start in range(0, len(array), CHECKED):  # a memory-mapped file may be larger than the memory
            part = np.asarray(array[start : start + CHECKED])
            if not (good := np.isfinite(part)).all():
                row = start + int((~good).reshape(len(part), -1).any(1).argmax())
                raise ValueError(
                    f"path: {self.path} ({self.key}) holds NaN or infinity, first in row {row}; leave it out"
                )
            low, high = min(low, float(part.min())), max(high, float(part.max()))
        if low == high:
            raise ValueError(f"path: {self.path} ({self.key}) holds {low:g} everywhere: there is nothing to match")
        super().check(inputs)

    def network(self, inputs: Surroundings) -> nn.Module:
        shape, target = self._read(self.key).shape[1:], inputs.latent_shape
        size = math.prod(target)
        if shape in (target, (size,)):
            return Rows("latents", target)
        if len(shape) == 3:
            return Rows("map", tuple(shape))
        if len(shape) == 1 and shape[0] > size:
            return Rows("vector", (shape[0], 1, 1))
        raise ValueError(
            f"path: {self.path} holds rows of shape {list(shape)}, which do not make latents {list(target)}; give "
            f"[n, {', '.join(map(str, target))}], [n, {size}], features [n, d, h, w], or vectors of more than {size} "
            "components (a shorter one is a feature map [n, d, 1, 1])"
        )

    def dataset(self, inputs: Surroundings) -> ArrayData:
        rows = self._read(self.key)
        if self.labels is None:
            if self.classes is not None:
                raise ValueError(
                    f"classes: {list(self.classes)} cannot be chosen without labels; set `labels` in the same section, "
                    "or leave classes out"
                )
            return ArrayData(rows, torch.full((len(rows),), -1))
        read = np.asarray(self._read(self.labels))
        if (read != np.round(read)).any():
            raise ValueError(f"labels: {self.labels!r} holds {read[read != np.round(read)][0]:g}; classes are numbered")
        labels = torch.from_numpy(read.astype(np.int64))
        if labels.shape != (len(rows),) or not 0 <= int(labels.min()) <= int(labels.max()) < inputs.num_classes:
            raise ValueError(
                f"labels: {self.labels!r} has shape {list(labels.shape)} and values {int(labels.min())} to "
                f"{int(labels.max())}; needed is [{len(rows)}] with values 0 to {inputs.num_classes - 1}"
            )
        return ArrayData(rows, labels)

    def fingerprint(self) -> str:
        """Of the names and contents of the files."""
        side = [Path(self.labels).expanduser()] if self.labels is not None and self.path.endswith(".npy") else []
        return content_hash([*self._files(), *side])

    def _files(self) -> list[Path]:
        files = parquet_files(Path(self.path).expanduser())
        if files[0].suffix not in SUFFIXES:
            what = f"reference.distribution.path: {self.path} is none of {', '.join(SUFFIXES)}"
            raise ValueError(f"{what}; convert it, e.g. with numpy.save")
        return files

    def _read(self, key: str) -> NDArray[np.number]:
        """The array [n, ...], memory-mapped where its format allows. Raises ValueError naming what is wrong."""
        files = self._files()
        kind = files[0].suffix
        try:
            if kind == ".npy":
                file = files[0] if key == self.key else Path(key).expanduser()
                array: NDArray[np.number] = np.load(file, mmap_mode="r", allow_pickle=False)
            elif kind == ".safetensors":
                tensors = load_file(files[0])
                if key not in tensors:
                    raise ValueError(f"no tensor is called {key!r}{nearest(key, tensors)}")
                array = tensors[key].float().numpy()
            else:
                array = np.array(read_column(files, key), dtype=np.float32)
        except Exception as error:  # each format's library has classes of its own
            raise ValueError(f"path: {self.path} ({key}) cannot be read: {error}") from error
        if array.ndim == 0 or len(array) == 0 or not np.issubdtype(array.dtype, np.number):
            raise ValueError(f"path: {self.path} ({key}) holds {array.dtype} {list(array.shape)}, not rows of numbers")
        return array


class Rows(nn.Module):
    """Rows of an array as features; `layout` as `dmvae.references.reduction.Reducer` describes it."""

    def __init__(self, layout: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layout, self.shape = layout, shape

    def forward(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), *self.shape)


class ArrayData:
    """Rows of numbers [n, ...] and labels [n] as a data set."""

    def __init__(self, rows: NDArray[np.number], labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        items, labels = self.__getitems__([index])
        return items[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices)
        # Converted to float32, because uint8 items count as images.
        return torch.from_numpy(np.array(self.rows[index.numpy()], dtype=np.float32)), self.labels[index]
