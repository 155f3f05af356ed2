"""Sources of images to measure: each knows its number of images, and gives any range of them in batches.

Batches are uint8 [n, C, h, w]. Only `TensorImages` holds more than a batch in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from dmvae.config import Values
from dmvae.datasets import Dataset
from dmvae.datasets.image_file import BrokenImage, read_image
from dmvae.datasets.image_scan import Entry, folders, path_fraction, scan
from dmvae.datasets.loading import Loader, cuts, loader
from dmvae.datasets.mixed import mixed
from dmvae.datasets.pixels import unit_to_uint8
from dmvae.ranges import Resampling
from dmvae.runtime.console import Bar
from dmvae.runtime.done import NAME as DONE
from dmvae.runtime.files import atomic_write
from dmvae.runtime.hashing import code_of, digest, sha256_of
from dmvae.runtime.words import counted, few


class Images(Protocol):
    """A source. `facts` go into manifests; `labels` are int64 [n], or None where there are no classes."""

    facts: Values
    labels: Tensor | None

    def __len__(self) -> int: ...
    def batches(self, chosen: range, batch_size: int) -> Iterator[Tensor]: ...


class TensorImages:
    """Images in memory, uint8 or float in [0, 1], [n, C, h, w]; labels int64 [n]. Raises ValueError for others."""

    def __init__(self, images: Tensor, labels: Tensor | None = None, **facts: object) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images to measure have the shape [n, C, h, w] with n at least 1, not {[*images.shape]}")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{len(labels)} labels for {len(images)} images; give one for each")
        self.images, self.labels = unit_to_uint8(images), labels
        self.facts = (
            {"kind": "tensor", "fingerprint": digest(self.images, self.labels)} | _size(self.images.shape) | facts
        )

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, chosen: range, batch_size: int) -> Iterator[Tensor]:
        yield from self.images[chosen.start : chosen.stop].split(batch_size)


class DatasetImages:
    """The first `count` images of a data set, in an order that mixes classes (see `mixed`); None is all."""

    def __init__(self, dataset: Dataset, count: int | None = None, workers: int = 0) -> None:
        self.dataset, self.count, self.workers = mixed(dataset), min(count or len(dataset), len(dataset)), workers
        self.labels: Tensor | None = self.dataset.labels[: self.count]
        of = dataset if self.count == len(dataset) else self.dataset  # for all images, the order does not matter
        code = code_of(type(dataset))  # of a plugin: its own fingerprint may be of the files that it reads alone
        content = digest(of.fingerprint, code) if code else of.fingerprint
        facts = {"kind": "data set", "fingerprint": content, "classes": digest(tuple(dataset.classes))}
        self.facts = facts | _size(dataset[0][0].shape)

    def __len__(self) -> int:
        return self.count

    def batches(self, chosen: range, batch_size: int) -> Iterator[Tensor]:
        for images, _ in loader(self.dataset, cuts(chosen, batch_size), self.workers, torch.device("cpu")):
            yield images


def images_in(folder: Path) -> tuple[list[Entry], tuple[str, ...]]:
    """`scan`, with errors that do not name a recipe's field. Raises ValueError also for a folder of splits, which would
    be taken for classes."""
    if not folder.is_dir():
        raise ValueError(f"no such folder of images: {folder} (looked from {Path.cwd()})")
    if len(splits := folders(folder)) > 1:
        train, test = splits
        raise ValueError(
            f"{folder} holds two splits, {train.name}/ and {test.name}/, which are no classes: give {test} or {train}"
        )
    try:
        return scan(folder)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("data.root: ")) from error


RESIZED: dict[Resampling, str] = {
    "square": "central square, antialiased bicubic (Pillow)",
    "adm": "as ADM: halved by boxes, bicubic, central crop (Pillow)",
}
"""What manifests say of how images became squares of one size."""


class FolderImages:
    """The images of a folder or of its class folders. size: height and width of the squares that they become, by
    `resampling`; None for images that are square and all of one size. channels: 1 grey, 3 colour. limit: at most so
    many, a fixed choice.

    Raises ValueError for a folder without images, and for a resampling without a size. Reading raises ValueError that
    names all files that are broken or of another size.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int | None = None,
        resampling: Resampling = "square",
        channels: int = 3,
        workers: int = 0,
        limit: int | None = None,
    ) -> None:
        if size is None and resampling != "square":
            raise ValueError(f"--resampling {resampling} goes with --size N; without it images are taken as they are")
        folder = Path(folder)
        entries, self.classes = images_in(folder)
        if limit is not None:
            entries = sorted(sorted(entries, key=lambda e: path_fraction(e.path))[:limit], key=lambda e: e.path)
        self.folder, self.entries, self.channels, self.workers = folder, entries, channels, workers
        self.labels = torch.tensor([e.label for e in entries]) if len(self.classes) > 1 else None
        self.resampling: Resampling = resampling
        self.resized, self.size = size is not None, size or self._first_size()
        self.facts = {
            "kind": "folder",
            "path": str(folder.resolve()),
            "fingerprint": self._content(),
            "classes": digest(self.classes),
            "size": self.size,
            **({} if channels == 3 else {"channels": channels}),  # older caches, without this entry, are of colour
            "resize": RESIZED[resampling] if self.resized else "none",
        }

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Tensor:
        image = self._read(i)
        if isinstance(image, str):
            raise ValueError(self._complaint())
        return image

    def _read(self, i: int) -> Tensor | str:
        """An image, or what is wrong with it."""
        path = self.folder / self.entries[i].path
        try:
            if not self.resized:
                with Image.open(path) as image:
                    if image.size != (self.size, self.size):
                        return f"{path} is {image.width}x{image.height}"
            return read_image(path, self.size, self.channels, self.resampling)
        except BrokenImage as error:
            return f"unreadable image: {error}"
        except Exception as error:  # such as for an image that is too large
            return f"unreadable image: {path}: {error}"

    def _complaint(self) -> str:
        """What is wrong with all of the files, so that they can be fixed in one go."""
        with ThreadPoolExecutor(4) as pool:
            found = [told for told in pool.map(self._problem, range(len(self.entries))) if told is not None]
        broken = [told for told in found if told.startswith("unreadable")]
        others = [told for told in found if not told.startswith("unreadable")]
        lines = []
        if broken:
            lines.append(
                f"{len(broken)} of {counted(len(self.entries), 'image')}: {_listed(broken)}. Fix or delete them"
            )
        if others:
            lines.append(
                f"{few(others, 3)}, and the first readable one is {self.size}x{self.size}: give --size N to crop and "
                "resize all to one size"
            )
        return ". ".join(lines)

    def _problem(self, i: int) -> str | None:
        found = self._read(i)
        return found if isinstance(found, str) else None

    def batches(self, chosen: range, batch_size: int) -> Iterator[Tensor]:
        yield from Loader(self, cuts(chosen, batch_size), self.workers, torch.stack)

    def _content(self) -> str:
        """A hash of all files' contents: sizes are not enough, since different images of noise may have equal ones."""
        paths = [self.folder / entry.path for entry in self.entries]
        with ThreadPoolExecutor(4) as pool:
            return digest(list(zip((e.path for e in self.entries), pool.map(_hash, paths), strict=True)))

    def _first_size(self) -> int:
        for entry in self.entries:
            path = self.folder / entry.path
            try:
                with Image.open(path) as image:
                    width, height = image.size
            except Exception:
                continue  # reported with all broken files when it is read
            if width != height:
                raise ValueError(
                    f"{path} is {width}x{height}, not square: give --size N to crop and resize all to one size"
                )
            return width
        self.resized, self.size = True, 1
        raise ValueError(self._complaint())


def _hash(path: Path) -> str:
    """A file's SHA-256; "" if it cannot be opened, which reading reports with all broken files."""
    try:
        return sha256_of(path)
    except OSError:
        return ""


def are_samples(folder: Path) -> bool:
    """Whether the folder holds files of the stage `sample`."""
    return any(folder.glob("samples-*.safetensors"))


class SampleFiles:
    """The images that the stage `sample` wrote to a folder. Raises ValueError where there are none, and for an
    unfinished stage, whose fewer images would be another set."""

    def __init__(self, folder: Path, **facts: object) -> None:
        folder = folder.resolve()
        stage = folder.parent
        of_a_run = folder.name.startswith("guidance-") and stage.name.partition("-")[0] == "sample"
        if of_a_run and not (stage / DONE).is_file():
            raise ValueError(f"{folder}: its stage is not finished, so samples are missing; run it to its end")
        self.paths = sorted(folder.glob("samples-*.safetensors"))
        if not self.paths:
            raise ValueError(f"no samples in {folder}; `dmvae sample RECIPE` writes samples-NNNNN.safetensors")
        self.labels: Tensor | None = torch.cat([_tensor(path, "labels") for path in self.paths])
        self.count = len(self.labels)
        self.facts = {"kind": "samples", "path": str(folder)} | _size(_shape(self.paths[0])) | facts

    def __len__(self) -> int:
        return self.count

    def batches(self, chosen: range, batch_size: int) -> Iterator[Tensor]:
        start = 0
        for path in self.paths:
            images = _tensor(path, "images")
            part = images[max(0, chosen.start - start) : max(0, chosen.stop - start)]
            start += len(images)
            if len(part):
                yield from part.split(batch_size)


def npz_images(path: Path) -> TensorImages:
    """The images of a sample batch as ADM writes it: `arr_0`, uint8 [n, h, w, 1 or 3]. Raises ValueError for others."""
    if not path.is_file():
        raise ValueError(f"no such file of samples: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            if "arr_0" not in file:
                raise ValueError(f"it holds {', '.join(file.files) or 'nothing'}")
            images = torch.from_numpy(file["arr_0"])
    except Exception as error:  # damaged bytes make numpy raise almost any type
        raise ValueError(f"{path}: no .npz of samples, which holds uint8 images as arr_0: {error!r}") from error
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"{path}: samples have the shape [n, h, w, 1 or 3], not {[*images.shape]}")
    return TensorImages(images.permute(0, 3, 1, 2).contiguous(), path=str(path.resolve()))


def write_npz(images: Images, path: Path) -> None:
    """Write images as a sample batch of ADM, in their order: `arr_0`, uint8 [n, h, w, 3], grey as colour, and `arr_1`,
    their labels, int64 [n], if they have any. Written in batches: 50,000 images of 256 pixels are 10 GB."""
    with Bar("write", len(images), "images") as bar, atomic_write(path) as part, ZipFile(part, "w") as file:
        with file.open("arr_0.npy", "w", force_zip64=True) as member:
            for i, batch in enumerate(images.batches(range(len(images)), 64)):
                pixels = batch.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
                if i == 0:
                    shape = (len(images), *pixels.shape[1:])
                    head = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, head)
                member.write(pixels.data)
                bar.step(len(batch))
        if images.labels is not None:
            with file.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, images.labels.numpy())


def _listed(told: list[str], most: int = 100) -> str:
    more = f"; and {len(told) - most} more" if len(told) > most else ""
    return "; ".join(told[:most]).replace("; unreadable image: ", "; ") + more


def _size(shape: Sequence[int]) -> Values:
    """The entry "size" of a manifest, for images [..., h, w]: one number if they are square, else [h, w]."""
    h, w = shape[-2:]
    return {"size": h if h == w else [h, w]}


def _shape(path: Path) -> list[int]:
    with safe_open(path, "pt") as file:
        return file.get_slice("images").get_shape()


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
