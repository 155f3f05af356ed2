"""A folder of images: one folder per class, or one flat folder without classes."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from dmvae.datasets import Dataset, Split
from dmvae.datasets.cropped import FilesConfig
from dmvae.datasets.decoded import decoded
from dmvae.datasets.download import cache_folder, existing_folder
from dmvae.datasets.encoded import DecodedWhenRead, parts
from dmvae.datasets.image_file import PIXELS, BrokenImage, check_header, read_image
from dmvae.datasets.image_scan import HELD_OUT, Entry, folders, path_fraction, settled, split_files
from dmvae.datasets.memory import MemoryDataset
from dmvae.datasets.skipped import OnBroken, tell
from dmvae.ranges import Range
from dmvae.registry import register
from dmvae.runtime.files import read_json, write_json
from dmvae.runtime.hashing import digest

CACHED_BYTES = 16 * 2**30
INDEX = 2  # goes up when the index is made otherwise


@register("image_folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolder(FilesConfig):
    """Images of any size and mode; each becomes a square of one size.

    The fingerprint covers relative paths, the files' sizes and ends (see `ends`) and this config, not the folder's
    place. `limit` takes a fixed pseudo-random choice of files.
    """

    root: str
    """Folder of class folders, or of images, or with a dataset.json of their labels, as EDM2's tools write it. train/
    beside test/ (or val/, valid/, validation/) are the splits."""
    valid_fraction: Annotated[float, Range(0, 1, "()")] = 0.1
    """Share of images in the test split if the folder has no such subfolders; chosen by file name."""
    on_broken: OnBroken = "skip"
    """Unreadable files: skip them with one warning, or stop with an error."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """auto: data that take at most 16 GiB decoded are decoded once, into a file under ~/.cache/dmvae that is then
    mapped into memory; larger data are decoded at every read. memory: each process decodes and holds them. none:
    decoded at every read. An index of the files is always kept there, so that the next start opens none of them."""

    def build(self, split: Split) -> Dataset:
        root = existing_folder(self.root)
        folder, files, classes = split_files(root, split, self.valid_fraction)
        if self.limit is not None:
            files = sorted(sorted(files, key=lambda f: path_fraction(f.path))[: self.limit], key=lambda f: f.path)
        paths = [folder / f.path for f in files]
        labels = torch.tensor([f.label for f in files])
        where = f"{folder}: {split}"
        fits = len(files) * self.channels * self.side**2 <= CACHED_BYTES
        held = self.cache == "memory" or (self.cache == "auto" and fits)
        place = digest(str(folder.resolve()), split, self.limit, self.valid_fraction, held)
        index = cache_folder() / "folder_index" / f"{place}.json"
        contents, keep, broken = _look(folder, files, index, headers=not held)
        config = (self.prepared, self.channels, self.valid_fraction, self.on_broken, split, classes)
        fingerprint = digest(config, [(f.path, f.label) for f in files], contents)
        images = None
        if held:
            # a rewritten file of the same size changes the decoded pixels, hence the times here
            key = digest(fingerprint, str(folder.resolve()), [f.mtime_ns for f in files], PIXELS)
            images, keep, broken = self._decoded(paths, key) or (None, keep, broken)
        tell(broken, labels, keep, classes, where, self.on_broken)
        if broken:
            fingerprint = digest(fingerprint, keep)
        if images is None:
            return self.cropped(FolderDataset([paths[i] for i in keep], labels[keep], classes, fingerprint, self))
        return self.cropped(MemoryDataset(images, labels[keep], classes, fingerprint=fingerprint))

    def _decoded(self, paths: list[Path], key: str) -> tuple[Tensor, list[int], list[str]] | None:
        """(images uint8 [n, C, side, side], indices of the readable files, messages of the others); None where they
        cannot be kept on the disk."""

        def read(index: int) -> Tensor | str:
            try:
                return read_image(paths[index], self.side, self.channels, self.resampling)
            except BrokenImage as error:
                return str(error).removeprefix(f"{paths[index]}: ")  # the folder may move

        if self.cache == "memory":
            with _threads() as pool:
                results = list(pool.map(read, range(len(paths))))
            why = {index: found for index, found in enumerate(results) if isinstance(found, str)}
            readable = [found for found in results if isinstance(found, Tensor)]
            images = torch.stack(readable) if readable else torch.empty(0)
        elif found := decoded(key, (len(paths), self.channels, self.side, self.side), read):
            images, why = found
        else:
            return None
        keep = [index for index in range(len(paths)) if index not in why]
        return images, keep, [f"{paths[index]}: {reason}" for index, reason in why.items()]

    def image_folders(self) -> list[Path]:
        return folders(existing_folder(self.root))

    @property
    def apart(self) -> bool:
        """Whether the root has a folder for each split, so that none is chosen by file name."""
        root = Path(self.root).expanduser()
        return any((root / name).is_dir() for name in HELD_OUT) and (root / "train").is_dir()

    def held_out(self) -> str:
        if self.apart:
            return "the folder has train and test images apart"
        return f"the test images are chosen by file name, about {self.valid_fraction:.0%} of all (data.valid_fraction)"


class FolderDataset(DecodedWhenRead):
    """Image files, decoded at every read."""

    def __init__(
        self, paths: list[Path], labels: Tensor, classes: tuple[str, ...], fingerprint: str, config: ImageFolder
    ):
        super().__init__(labels, classes, fingerprint, config.on_broken)
        # one array of bytes: reference counts would copy a list of a million objects into each worker
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.config = config

    def name(self, index: int) -> str:
        """The file of an image."""
        return os.fsdecode(self.paths[index % len(self)])

    def decode(self, index: int) -> Tensor:
        config = self.config
        return read_image(Path(self.name(index)), config.side, config.channels, config.resampling)


def ends(path: Path) -> str:
    """A hash of a file's size and `parts`; "" for a file that cannot be read.

    That notices a rewritten image without reading millions of whole files.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = parts(file, size)
            return digest(*found) if len(found) == 1 else digest(size, *found)
    except OSError:
        return ""


def _look(folder: Path, files: Sequence[Entry], kept: Path, *, headers: bool) -> tuple[list[str], list[int], list[str]]:
    """(`ends` of every file; the indices of those that start like images, all of them without `headers`; the messages
    of the others).

    The result is kept in the file `kept` and holds while all paths, sizes and times stay the same. Files that could not
    be read are looked at again each time.
    """
    paths, now = [folder / f.path for f in files], time.time_ns()
    seen = digest(INDEX, [(f.path, f.bytes, f.mtime_ns, f.ctime_ns) for f in files])
    contents, doubtful = _known(kept, seen, folder) or ([""] * len(files), list(range(len(files))))
    opened = [paths[i] for i in doubtful]
    with _threads() as pool:
        for i, found in zip(doubtful, pool.map(ends, opened), strict=True):
            contents[i] = found
        problems = list(pool.map(check_header, opened)) if headers else [""] * len(opened)
    broken = {i: problem for i, problem in zip(doubtful, problems, strict=True) if problem}
    still = [i for i in doubtful if i in broken or not contents[i]]
    if still != doubtful and all(settled(f.ctime_ns, now) for f in files):
        try:
            write_json(kept, {"seen": seen, "ends": contents, "doubtful": still})
        except OSError as error:  # a full or foreign folder only costs the next start some time
            where = f"{kept.parent} ({error.strerror or error})"
            warnings.warn(f"indices of folders cannot be kept in {where}: each start opens all files", stacklevel=3)
    return contents, [i for i in range(len(files)) if i not in broken], [*broken.values()]


def _known(kept: Path, seen: str, folder: Path) -> tuple[list[str], list[int]] | None:
    """(`ends` of every file, the indices of those that could not be read), if they are kept for the same files."""
    try:
        found = read_json(kept, dict)
    except OSError:
        return None
    except ValueError as error:
        warnings.warn(f"{error}: the index of {folder} is made anew", stacklevel=4)
        return None
    return (found["ends"], found["doubtful"]) if found.get("seen") == seen else None


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))
