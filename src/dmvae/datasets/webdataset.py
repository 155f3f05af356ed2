"""WebDataset shards: .tar files of images, each with its label beside it (0001.jpg, 0001.cls)."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch

from dmvae.datasets import Dataset, Split
from dmvae.datasets.download import cache_folder
from dmvae.datasets.encoded import EncodedConfig, check_labels, choose, numbered, open_images
from dmvae.datasets.image_file import PIXELS
from dmvae.datasets.image_scan import HELD_OUT, settled
from dmvae.datasets.skipped import note
from dmvae.datasets.tar_index import Samples, read_index
from dmvae.registry import register
from dmvae.runtime.files import read_json, write_json
from dmvae.runtime.hashing import digest
from dmvae.runtime.words import counted, few
from dmvae.spelling import nearest

INDEX = 3  # goes up when the index is made otherwise


@register("webdataset")
@dataclass(frozen=True, kw_only=True)
class WebDataset(EncodedConfig):
    """Images read from .tar shards in any order: an index of every shard is made once and kept under ~/.cache/dmvae.

    Samples are named as in the package webdataset, which is only needed for a pattern with braces (extra `webdataset`).
    """

    root: str
    """Folder of .tar shards, one shard, or a pattern with braces, such as photos/{train,val}-{000..146}.tar. A split is
    the shards that have its name, or whose folder has: train, and test, val, valid or validation."""
    train_shards: str | None = None
    """Pattern of the names of the shards to train on, such as a-*.tar or a-{00..11}.tar; null: by the word train."""
    test_shards: str | None = None
    """Pattern of the names of the shards to measure on; null: by the word test, val, valid or validation."""
    image_extension: str | None = None
    """Extension of the images, such as jpg or input.png; null takes any image's."""
    label_extension: str = "cls"
    """Extension of the labels, numbers or names. "none": images without classes."""

    def build(self, split: Split) -> Dataset:
        shards = self._shards(split)
        label = None if self.label_extension == "none" else _ending(self.label_extension)
        index = [self._index(shard, label) for shard in shards]
        self._report(index)
        source = Members(shards, index, self.limit)
        classes: tuple[str, ...] = ("all",)
        if label is not None:
            # from the train split, so that both splits have the same classes
            given = self.given_classes()
            texts = [s.labels for s in index]
            if given is None and split != "train":
                texts = [self._index(shard, label).labels for shard in self._shards("train")]
            classes = given or _classes(texts, f"{self.root}, .{label} of the train split")
            numbers = given is not None or _number(classes[0]) is not None
            source.set_labels(index, classes, label, numbers)
            of = "data.classes" if given else f".{label} of the train split"
            check_labels(source.labels, classes, of, source.where)
        content = digest([s.content for s in index], source.chosen if self.limit else None)
        return self.cropped(open_images(source, self, classes, content))

    def _shards(self, split: Split) -> list[Path]:
        """The split's shards, sorted. Raises ValueError where there are none, or the splits share some."""
        files, top = _expand(self.root)
        pattern = self.train_shards if split == "train" else self.test_shards
        if pattern is not None:
            patterns = _braces(pattern, f"data.{split}_shards")
            found = [f for f in files if any(fnmatch(_below(f, top), p) or fnmatch(f.name, p) for p in patterns)]
        else:
            names = ("train",) if split == "train" else HELD_OUT
            found = next((some for name in names if (some := [f for f in files if name in _words(f, top)])), [])
        train = set[Path]() if split == "train" else {shard.resolve() for shard in self._shards("train")}
        if both := [shard for shard in found if shard.resolve() in train]:
            raise ValueError(
                f"data.root: {self.root}: {counted(len(both), 'shard')}, such as {_below(min(both), top)}, are of the "
                "train split and of the test split; name shards in data.train_shards and data.test_shards that differ"
            )
        if not found:
            there = few([_below(f, top) for f in files])
            why = f"none matches {pattern!r}" if pattern is not None else f"none is called {' or '.join(names)}"
            raise ValueError(
                f"data.root: {self.root} has no shard of the {split} split: of {there}, {why}; set "
                f"data.{split}_shards to a pattern of their names"
            )
        return found

    def _index(self, shard: Path, label: str | None) -> Samples:
        """The samples of a shard, from the kept index if the shard is unchanged. Raises ValueError as `read_index`."""
        stat, now = shard.stat(), time.time_ns()
        seen = (str(shard.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        key = digest(INDEX, PIXELS, seen, self.image_extension, label)
        kept = cache_folder() / "tar_index" / f"{key}.json"
        try:
            if kept.is_file():
                return Samples(**read_json(kept, dict))
        except (ValueError, TypeError) as error:
            warnings.warn(f"{error}: the index of {shard} is made anew", stacklevel=3)
        samples = read_index(shard, self.image_extension and _ending(self.image_extension), label)
        try:
            if settled(stat.st_ctime_ns, now):
                write_json(kept, asdict(samples))
        except OSError as error:  # a full or foreign folder only costs the next stage some time
            where = f"{kept.parent} ({error.strerror or error})"
            warnings.warn(f"indices of shards cannot be kept in {where}: each stage makes them anew", stacklevel=3)
        return samples

    def _report(self, index: list[Samples]) -> None:
        broken = [problem for samples in index for problem in samples.broken]
        if not broken:
            return
        named = "; ".join(broken[:3]) + ("; ..." if len(broken) > 3 else "")
        told = counted(len(broken), "unusable sample or shard", "unusable samples or shards")
        if self.on_broken == "error":
            raise ValueError(f"{told}: {named}. Fix them, or set data.on_broken: skip")
        note(self.root + broken[0], broken)
        total = sum(len(samples.names) for samples in index)
        warnings.warn(f"skipped {told} beside {total}: {named}", stacklevel=3)


class Members:
    """Images of a split's shards. Each read opens the shard and seeks; no file stays open."""

    def __init__(self, shards: list[Path], index: list[Samples], limit: int | None):
        counts = [len(samples.names) for samples in index]
        self.chosen = choose(sum(counts), limit)
        rows = np.array(self.chosen)
        # arrays: reference counts would copy lists of a million objects into each worker
        self.shards = [str(shard) for shard in shards]
        self.shard = np.repeat(np.arange(len(shards)), counts)[rows]
        self.offsets = np.array([offset for samples in index for offset in samples.offsets])[rows]
        self.sizes = np.array([size for samples in index for size in samples.sizes])[rows]
        self.names = np.array([name.encode(errors="surrogateescape") for s in index for name in s.names])[rows]
        self.labels = torch.zeros(len(rows), dtype=torch.int64)

    def set_labels(self, index: list[Samples], classes: tuple[str, ...], extension: str, numbers: bool) -> None:
        """Set labels from their texts: class names and, with `numbers`, their numbers: whoever wrote numbers beside
        names may have counted otherwise. Raises ValueError naming one that is neither, or the number of one class and
        the name of another."""
        places = {name: number for number, name in enumerate(classes)}
        texts = [text for samples in index for text in samples.labels]
        found: list[int] = []
        for row, at in enumerate(self.chosen):
            number = _number(texts[at]) if numbers else None
            if number is None and texts[at] not in places:
                what = "neither a number nor a class" if numbers else "no class of the train split"
                raise ValueError(
                    f"{self.where(row)}: its .{extension} holds {texts[at][:60]!r}, {what}"
                    f"{nearest(texts[at][:60], list(places)[:20])}"
                )
            if number is not None and places.get(texts[at], number) != number:
                raise ValueError(
                    f"{self.where(row)}: its .{extension} holds {texts[at]!r}, which data.classes has as the name of "
                    f"class {places[texts[at]]}: write that number there, or give the class a name that is no number"
                )
            found.append(places[texts[at]] if number is None else number)
        self.labels = torch.tensor(found, dtype=torch.int64)

    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError or ValueError, not BrokenImage, for a shard that has changed."""
        shard, size = self.shards[self.shard[index]], int(self.sizes[index])
        with open(shard, "rb", buffering=0) as file:
            file.seek(int(self.offsets[index]))
            data = file.read(size)
        if len(data) != size:
            raise ValueError(f"{shard}: has become shorter since its index was read; start again")
        return data

    def where(self, index: int) -> str:
        return f"{self.shards[self.shard[index]]}, member {self.names[index].decode(errors='surrogateescape')}"


def _ending(text: str) -> str:
    """An extension as in `Samples`: without a leading dot, in lower case."""
    return text.removeprefix(".").lower()


def _number(text: str) -> int | None:
    """The text as a class number, or None."""
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else None


def _classes(texts: Sequence[list[str]], where: str) -> tuple[str, ...]:
    """Names of the classes of the train split: those in the labels, sorted, or the numbers 0 to the largest."""
    found = {text for some in texts for text in some}
    numbers = [number for number in map(_number, found) if number is not None]
    if (other := min((text for text in found if text.startswith(("{", "["))), default=None)) is not None:
        raise ValueError(f"{where}: holds {other[:60]!r}, JSON and no class: write the class's number or name to .cls")
    if not numbers:
        return tuple(sorted(found))
    if len(numbers) < len(found):
        odd = min(text for text in found if _number(text) is None)
        raise ValueError(f"{where}: holds both numbers and names, such as {odd[:60]!r}: list the names in data.classes")
    return numbered(torch.tensor(numbers), where)


def _expand(root: str) -> tuple[list[Path], Path]:
    """Every shard that `data.root` names, sorted, and the folder that they lie in."""
    if "{" in root:
        files = [Path(text).expanduser() for text in _braces(root, "data.root")]
        if gone := [file for file in files if not file.is_file()]:
            raise ValueError(
                f"data.root: {len(gone)} of {counted(len(files), 'shard')} of {root} not there, first {gone[0]}"
            )
        return files, Path(root[: root.index("{")] + "x").expanduser().parent
    path = Path(root).expanduser()
    if path.is_file():
        return [path], path.parent
    if not path.is_dir():
        raise ValueError(f"data.root: {path} does not exist (looked from {Path.cwd()}): give a folder of .tar shards")
    # a Mac puts a hidden file beside each file
    files = sorted(file for below in ("*.tar", "*/*.tar") for file in path.glob(below) if file.name[0] != ".")
    if not files:
        more = "; unpack the .tar.gz with gunzip" if [*path.glob("*.tar.gz"), *path.glob("*.tgz")] else ""
        raise ValueError(f"data.root: no .tar shard in {path} or the folders in it{more}")
    return files, path


def _braces(pattern: str, field: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ValueError(
            f"{field}: patterns with braces need the package webdataset: pip install 'dmvae[webdataset]'"
        ) from error
    return list(expand_urls(pattern))


def _below(file: Path, top: Path) -> str:
    return file.relative_to(top).as_posix() if file.is_relative_to(top) else file.name


def _words(file: Path, top: Path) -> list[str]:
    return re.split(r"[^a-z]+", _below(file, top).lower())
