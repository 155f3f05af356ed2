"""Latents that were encoded elsewhere, read as they lie: shards of .safetensors, arrays of NumPy, a file for each.

Shapes: n latents [n, C, H, W], raw; labels int64 [n].
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from dmvae.datasets.listed import LIST, listed_labels
from dmvae.runtime.files import read_json
from dmvae.runtime.hashing import digest
from dmvae.runtime.weights import read_statistics
from dmvae.runtime.words import counted

MIRRORS = "latents_flip"
"""The tensor of mirror images' latents, as LightningDiT calls it."""
TENSORS = ("latents", MIRRORS, "labels")
LABELS = "labels.npy"
ENCODED = "encode.json"
"""In a folder that `dmvae encode` wrote: the names of its classes, and whether it is finished, among others."""
STATISTICS = ("latents_stats.pt", "statistics.safetensors")
"""Files of mean and std: LightningDiT's, [1, C, 1, 1], and ours, [C], which may hold a matrix that whitens too."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LOOKED_AT, PIECES, PIECE = 256, 16, 4096
"""For the fingerprint: the most files that are opened, the pieces of each that are read, and their bytes."""


class LatentFiles:
    """The latents in a folder, or in one file.

    Attributes: `paths`, the files in the order of their names, numbers in names by value; `shape` of a latent (C, H,
    W); `labels`, None where no file says them; `names` of the classes that labels count, None where not known;
    `mirrored`, whether there are latents of mirror images; `statistics`, what `read_statistics` gives of the file of
    STATISTICS beside them, {} without; `fingerprint`, of the names and sizes of the files, and of pieces of up to
    LOOKED_AT of them.

    Read are: *.safetensors with "latents" [n, C, H, W] and perhaps "latents_flip" and "labels"; *.npz with the same
    arrays; *.npy of [n, C, H, W]; or *.npy of [C, H, W] or [1, C, H, W], a latent each, also in class folders. Labels
    of .npy files: dataset.json, the class folders, or `labels`, by default labels.npy beside them. Of *mean-std*.npy,
    as EDM2's and REPA's tools write them, the first half of the channels is read, the means.

    Raises ValueError, naming the file, for no latents, damaged files, and what does not fit together; and for a folder
    whose `dmvae encode` has not ended.
    """

    def __init__(self, root: Path, labels: Path | None = None) -> None:
        plan = root / ENCODED
        if plan.is_file() and read_json(plan, dict).get("finished") is False:
            raise ValueError(
                f"{root}: its `dmvae encode` has not ended, so latents are missing; the same command goes on, or name "
                "one of its files"
            )
        self.root, self.paths = root, _found(root, labels)
        self._open: dict[Path, dict[str, Tensor]] = {}
        first = _read(self.paths[0])
        self.shape = tuple(first["latents"].shape[1:])
        # A million files of one latent each are neither opened before they are read nor kept open.
        self.single = len(self.paths) > 1 and self.paths[0].suffix == ".npy" and len(first["latents"]) == 1
        heads = [first] if self.single else [self._tensors(path) for path in self.paths]
        counts = [1] * len(self.paths) if self.single else [len(head["latents"]) for head in heads]
        self.stops = torch.tensor([*accumulate(counts)])
        lacks = [path for path, head in zip(self.paths, heads, strict=False) if MIRRORS not in head]
        self.mirrored = not lacks
        if lacks and len(lacks) < len(heads):
            raise ValueError(f"{lacks[0]} has no {MIRRORS!r}, which other files have: encode it again, or remove those")
        self.names: tuple[str, ...] | None = None
        self.labels = self._labels(heads, labels)
        self.statistics = _statistics(root if root.is_dir() else root.parent, self.shape[0])
        self.fingerprint = digest(*_content(self.paths), *self.statistics.values())

    def __len__(self) -> int:
        return int(self.stops[-1])

    def where(self, index: int) -> str:
        """The file of a latent, and its place there, for errors."""
        ((file, row),) = self._places(torch.tensor([index]))
        return str(self.paths[file]) if self.single else f"{self.paths[file]}: latent {row}"

    def read(self, indices: Sequence[int] | Tensor, tensor: str = "latents") -> Tensor:
        """Latents [k, C, H, W], raw, in the dtype of their file. Raises ValueError, naming the file, for NaN and
        infinity."""
        index = torch.as_tensor(indices)
        index = torch.where(index < 0, index + len(self), index)
        z = torch.stack([self._tensors(self.paths[file])[tensor][row] for file, row in self._places(index)])
        for i in (~z.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
            raise ValueError(f"{self.where(int(index[i]))}: NaN or infinity in {tensor!r}: encode it again")
        return z

    @property
    def linkable(self) -> bool:
        """Whether the files are shards of the form that we write, with labels in each."""
        return all(path.suffix == ".safetensors" and "labels" in self._tensors(path) for path in self.paths)

    def _places(self, index: Tensor) -> list[tuple[int, int]]:
        """(number of the file, row in it) of each."""
        file = torch.searchsorted(self.stops, index, right=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.stops])[file]
        return list(zip(file.tolist(), (index - starts).tolist(), strict=True))

    def _tensors(self, path: Path) -> dict[str, Tensor]:
        """The file's tensors. Raises ValueError for latents of another shape than the first file's."""
        if path in self._open:
            return self._open[path]
        found = _read(path)
        n = 1 if self.single else len(found["latents"])
        for name in found.keys() & {"latents", MIRRORS}:
            if tuple(found[name].shape) != (n, *self.shape):
                raise ValueError(
                    f"{path}: {name!r} has the shape {list(found[name].shape)}, not {[n, *self.shape]}, as "
                    f"{self.paths[0]} has it: all are of one tokenizer and one image size; remove the others"
                )
        if not self.single:
            self._open[path] = found
        return found

    def _labels(self, heads: list[dict[str, Tensor]], given: Path | None) -> Tensor | None:
        folder = self.root if self.root.is_dir() else self.root.parent
        above = [path.relative_to(folder).parts[0] for path in self.paths if path.parent != folder]
        held = [head.get("labels") for head in heads]
        found = [labels for labels in held if labels is not None]
        beside = given or folder / LABELS
        if found:
            if len(found) < len(held):
                path = self.paths[next(i for i, labels in enumerate(held) if labels is None)]
                raise ValueError(f"{path} has no 'labels', which other files have: add them")
            for path, head in zip(self.paths, heads, strict=True):
                _require_labels(path, head["labels"], len(head["latents"]))
            if given is not None:
                raise ValueError(f"data.labels: {self.paths[0]} has labels; leave it out")
            if (folder / ENCODED).is_file():
                self.names = tuple(map(str, read_json(folder / ENCODED, dict).get("classes") or ())) or None
            return torch.cat(found).long()
        if self.single and given is None and (listed := listed_labels(folder)):
            names = [path.relative_to(folder).as_posix() for path in self.paths]
            if missing := [name for name in names if name not in listed]:
                raise ValueError(f"{folder / LIST} gives no label for {missing[0]}: add it, or remove the file")
            return torch.tensor([listed[name] for name in names])
        if above and given is None:
            if len(above) < len(self.paths):
                loose = next(path for path in self.paths if path.parent == folder)
                raise ValueError(f"{loose} lies beside class folders: move it into one")
            self.names = tuple(sorted(set(above)))
            numbers = {name: number for number, name in enumerate(self.names)}
            counts = self.stops.diff(prepend=self.stops.new_zeros(1))
            return torch.tensor([numbers[name] for name in above]).repeat_interleave(counts)
        if given is None and not beside.is_file():
            return None
        labels = _tensors_of(beside)["latents"]
        _require_labels(beside, labels, len(self))
        return labels.long()


def _found(root: Path, labels: Path | None) -> list[Path]:
    """The files of latents at `root`, in order. Raises ValueError without any."""
    if root.is_file():
        return [root]
    for patterns in (("*.safetensors",), ("*.npz",), ("*.npy", "*/**/*.npy")):  # ** alone enters no linked folder
        found = {path: path.relative_to(root).parts for pattern in patterns for path in root.glob(pattern)}
        # a Mac puts a hidden file beside each file
        seen = [path for path, parts in found.items() if not any(part.startswith(".") for part in parts)]
        paths = [path for path in seen if path.name not in (*STATISTICS, LABELS)]
        if paths := [path for path in paths if labels is None or not _same(path, labels)]:
            return sorted(paths, key=lambda path: [_natural(part) for part in found[path]])
    what = "holds no .safetensors, .npz or .npy" if root.is_dir() else "does not exist"
    raise ValueError(f"{root} {what} (looked from {Path.cwd()}): give the folder, or file, that holds the latents")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which 2.npy comes before 10.npy."""
    return [(0, int(x), "") if x.isdecimal() else (1, 0, x) for x in re.split(r"(\d+)", name) if x]


def _read(path: Path) -> dict[str, Tensor]:
    """The file's tensors that TENSORS names, mapped into memory where the format allows: "latents" [n, C, H, W] at
    least."""
    found = _tensors_of(path)
    if path.suffix == ".npy" and found["latents"].ndim == 3:
        found["latents"] = found["latents"][None]
    if path.suffix == ".npy" and "mean-std" in path.name and found["latents"].ndim == 4:
        found["latents"] = found["latents"].chunk(2, dim=1)[0]
    for name in found.keys() & {"latents", MIRRORS}:
        z = found[name]
        if z.ndim != 4 or not z.numel() or z.dtype not in FLOATS:
            raise ValueError(f"{path}: {name!r} is {z.dtype} {list(z.shape)}; latents are floats [n, C, H, W], n > 0")
    return found


def _tensors_of(path: Path) -> dict[str, Tensor]:
    """Name -> tensor; the array of a .npy file is "latents"."""
    if path.suffix not in (".safetensors", ".npz", ".npy"):
        raise ValueError(f"{path}: latents are read from .safetensors, .npz and .npy files; convert it")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                _require_latents(names := [*file.keys()])
                return {name: file.get_tensor(name) for name in names if name in TENSORS}
        # "c", a private copy of what is written, since torch warns of arrays that cannot be written
        found = np.load(path, mmap_mode="c", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"latents": torch.from_numpy(found)}
        with found:
            _require_latents(found.files)
            return {name: torch.from_numpy(found[name]) for name in found.files if name in TENSORS}
    except Exception as error:  # damaged bytes make readers raise almost any type
        raise ValueError(f"{path} cannot be read: {error}; copy or write it again") from error


def _require_latents(names: Sequence[str]) -> None:
    if "latents" not in names:
        raise ValueError(f"it holds {', '.join(names) or 'nothing'}, and no tensor 'latents'")


def _require_labels(path: Path, labels: Tensor, n: int) -> None:
    if labels.shape != (n,) or labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise ValueError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}, for {counted(n, 'latent')}; give integers [{n}]"
        )


def _statistics(folder: Path, channels: int) -> dict[str, Tensor]:
    """What `read_statistics` gives of the file of STATISTICS in a folder; nothing without one. Raises ValueError for
    one that does not fit."""
    path = next((folder / name for name in STATISTICS if (folder / name).is_file()), None)
    try:
        return {} if path is None else read_statistics(path, channels)
    except ValueError as error:
        raise ValueError(f"{error}. Where the latents have no such file beside them, they are measured") from error


def _same(path: Path, other: Path) -> bool:
    return path.name == other.name and path.exists() and other.exists() and path.samefile(other)


def _content(paths: list[Path]) -> tuple[list[tuple[str, int]], list[bytes]]:
    """(names and sizes of files, pieces of up to LOOKED_AT of them). Raises ValueError for one that is gone."""
    chosen = np.unique(np.linspace(0, len(paths) - 1, LOOKED_AT).astype(int)).tolist()
    try:
        return [(path.name, path.stat().st_size) for path in paths], [_pieces(paths[i]) for i in chosen]
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}; write it again, or remove it") from error


def _pieces(path: Path) -> bytes:
    """Some bytes from all over a file."""
    with path.open("rb") as file:
        last = max(0, os.fstat(file.fileno()).st_size - PIECE)
        found = []
        for i in range(PIECES):
            file.seek(last * i // (PIECES - 1))
            found.append(file.read(PIECE))
    return b"".join(found)
