"""Which image files of a folder belong to a split, and their classes."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dmvae.datasets import Split
from dmvae.datasets.image_file import NEVER, SOMETIMES, SUFFIXES
from dmvae.datasets.skipped import note
from dmvae.runtime.words import counted

HELD_OUT = ("test", "val", "valid", "validation")
ALMOST = frozenset(["train", "training", "trainset", "test", "testing", "testset", "dev", "eval", *HELD_OUT])
"""What folders of splits are called, in small letters. Where a folder has nothing else they are no classes."""
SETTLED = 2.0
"""Seconds: files that have changed so short a time ago may change again at what is the same time, which is coarse on
some file systems. Their index is not kept."""
TRAINED_ON = frozenset(["train", "training", "trainset", "trn"])
"""One of these words is in the names of folders to train on, such as train_images."""


@dataclass(frozen=True)
class Entry:
    """One image file of a folder."""

    path: str
    """Relative to the scanned folder, with forward slashes."""
    label: int
    """Index into the classes."""
    bytes: int
    """Size of the file."""
    mtime_ns: int
    """When it was last written."""
    ctime_ns: int
    """When it was last written, renamed, or given other rights or times."""


def settled(ctime_ns: int, now: int) -> bool:
    """Whether a file that changed then will show a change after `now`, in ns since 1970, by its time."""
    return abs(now - ctime_ns) > SETTLED * 1e9


def split_files(root: Path, split: Split, fraction: float) -> tuple[Path, list[Entry], tuple[str, ...]]:
    """(folder, files sorted by path, classes) of one split. Raises ValueError on an unclear layout.

    train/ beside test/ (or val/, valid/, validation/) are the splits. Otherwise each file's path decides, so that
    adding files never moves others across: about `fraction` of them are test images.
    """
    found = _folders(root)
    held_out = _held_out(found)
    if held_out and set(found) <= set(HELD_OUT):
        raise ValueError(f"data.root: {root} has {held_out}/ but no train/ beside it; add train/")
    apart = folders(root)
    if len(found) == 1 and found != ["train"]:
        inside = root / found[0]
        if (inside / "train").is_dir() and any((inside / name).is_dir() for name in HELD_OUT):
            raise ValueError(f"data.root: {root} has {found[0]}/ alone, which has the splits; give {inside}")
        if not _loose(inside) and len(below := _folders(inside)) > 1:
            warnings.warn(
                f"{root} has {found[0]}/ alone, and so one class; where {', '.join(below[:3])} ... are classes, give "
                f"{inside}",
                stacklevel=3,
            )
    if len(apart) == 1 and len(found) > 1 and {name.lower() for name in found} <= ALMOST:
        raise ValueError(f"data.root: {root} has {'/, '.join(found)}/: call its two splits train/ and test/")
    if "train" in found and len(found) > 1 and not held_out:
        nested = [name for name in found if not _loose(root / name) and _folders(root / name)]
        if nested == ["train"]:
            others = "/, ".join(name for name in found if name != "train")
            raise ValueError(
                f"data.root: {root} has train/ with folders of its own, and {others}/ without beside it: call the "
                "held-out images test/, or move what is no split away"
            )
    if len(apart) == 1 and len(found) > 1:
        _require_classes(root, found)
    if len(apart) == 2:
        if (there := apart[0].resolve()) == apart[1].resolve():
            raise ValueError(
                f"data.root: {apart[0]} and {apart[1]} are one folder, {there}: give other images to "
                f"{apart[1].name}/, or move it away, and a tenth of train/ is held out"
            )
        train, classes = scan(apart[0])
        if split == "train":
            return apart[0], train, classes
        return apart[1], _relabel(apart[1], classes), classes
    base = root / "train" if found == ["train"] else root
    files, classes = scan(base)
    if len(files) < 2:
        raise ValueError(f"data.root: {base} has one image: it cannot be split; add more, or train/ and test/")
    ranked = sorted(files, key=lambda f: path_fraction(f.path))
    n_test = sum(path_fraction(f.path) < fraction for f in files)
    n_test = min(max(n_test, 1), len(files) - 1)  # neither split is ever empty
    chosen = ranked[:n_test] if split == "test" else ranked[n_test:]
    return base, sorted(chosen, key=lambda f: f.path), classes


def _require_classes(root: Path, found: list[str]) -> None:
    """Tell of folders that look like splits: each holds folders alone, and some of these have one name in all. Raises
    ValueError where one is called as folders to train on are."""
    if not all(not _loose(root / name) and _folders(root / name) for name in found):
        return
    shared = sorted(set.intersection(*(set(_folders(root / name)) for name in found)))
    if not shared:
        return
    told = f"{root} has {_some(found)} with the same folders in them, {_some(shared)}"
    if any(TRAINED_ON & set(re.split("[^a-z]+", name.lower())) for name in found):
        raise ValueError(
            f"data.root: {told}: call the two splits train/ and test/, and move others away; a class that is called so "
            "needs another name"
        )
    warnings.warn(
        f"{told}: the classes are {_some(found)}; where these are splits, call the two train/ and test/", stacklevel=4
    )


def _some(names: list[str]) -> str:
    return "/, ".join(names[:3]) + ("/, ..." if len(names) > 3 else "/")


def folders(root: Path) -> list[Path]:
    """Those in which every visible image is taken: train/ and test/ of `root`, or `root` itself."""
    found = _folders(root)
    held_out = _held_out(found)
    return [root / "train", root / held_out] if "train" in found and held_out else [root]


def _loose(folder: Path) -> bool:
    """Whether images lie in the folder itself."""
    return any(_suffix(name) in SUFFIXES for name in os.listdir(folder) if not name.startswith("."))


def _held_out(found: list[str]) -> str | None:
    return next((name for name in HELD_OUT if name in found), None)


def scan(folder: Path) -> tuple[list[Entry], tuple[str, ...]]:
    """Every image below `folder`, sorted by path, and the class names."""
    others: list[str] = []
    loose = list(_walk(folder, others, nested=False))
    above = tuple(map(_place, (folder, *folder.resolve().parents)))
    by_class = {name: list(_walk(folder / name, others, above=above)) for name in _folders(folder)}
    _tell(folder, others)
    full = [name for name, entries in by_class.items() if entries]
    if not loose and not full:
        tables = any(path.endswith(".parquet") for path in others)
        raise ValueError(
            f"data.root: no images in {folder}; looked for {' '.join(sorted(SUFFIXES))}"
            + ("; for its .parquet files set data.type to huggingface" if tables else "")
        )
    if loose and full:
        raise ValueError(
            f"data.root: {folder} holds both loose images ({loose[0].name}, {len(loose)} in all) and class "
            f"folders with images ({full[0]}/): move the loose ones into a class folder, or all into one folder"
        )
    if loose:
        return [_entry(e, e.name, 0) for e in sorted(loose, key=lambda e: e.name)], ("all",)
    empty = [name for name in by_class if name not in full]
    if empty:
        one = len(empty) == 1
        told = f"class folder {folder / empty[0]} has" if one else f"class folders {', '.join(empty)} of {folder} have"
        raise ValueError(f"data.root: {told} no image: delete {'it or fill it' if one else 'them or fill them'}")
    entries = [
        _entry(e, Path(e.path).relative_to(folder).as_posix(), label)
        for label, name in enumerate(full)
        for e in by_class[name]
    ]
    # a name in another encoding, out of an old archive: no page or file of text could hold it as it is
    classes = tuple(os.fsencode(name).decode(errors="backslashreplace") for name in full)
    return sorted(entries, key=lambda e: e.path), classes


def path_fraction(path: str) -> float:
    """A pseudo-random number in [0, 1) that depends on the path alone: it orders files and splits them."""
    return int.from_bytes(hashlib.sha256(path.encode(errors="surrogateescape")).digest()[:6], "big") / 2**48


def _relabel(folder: Path, classes: tuple[str, ...]) -> list[Entry]:
    """The held-out files, labelled as the training classes are."""
    entries, own = scan(folder)
    if own == ("all",) and "all" not in classes:
        raise ValueError(
            f"data.root: {folder} holds loose images, and train/ class folders: sort them into such folders, or move "
            f"{folder.name}/ away, and a tenth of train/, or another held-out folder beside it, is taken"
        )
    unknown = [name for name in own if name not in classes]
    if unknown:
        raise ValueError(
            f"data.root: {folder} has class {unknown[0]!r}, which train/ has not: rename it or add it there"
        )
    return [replace(e, label=classes.index(own[e.label])) for e in entries]


def _folders(folder: Path) -> list[str]:
    found = (e for e in os.scandir(folder) if not e.name.startswith((".", "__MACOSX")))  # the latter of a Mac's .zip
    return sorted(e.name for e in found if stat.S_ISDIR(_stat(e.path).st_mode))


def _tell(folder: Path, others: list[str]) -> None:
    """Of files that are not read, name those that are images by their endings, and count the rest."""
    images = [path for path in others if _suffix(path) in SOMETIMES | NEVER]
    known = set(images)
    counts = Counter(_suffix(path) or "no ending" for path in others if path not in known)
    lines = [f"{path}: images that end in {_suffix(path)} are not read here" for path in images]
    rest = ", ".join(f"{count} of {suffix}" for suffix, count in sorted(counts.items()))
    note(f"{folder}: others", lines + ([f"{folder}: files that are no images: {rest}"] if rest else []))
    if images:
        found = Counter(map(_suffix, images))
        told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.items()))
        heif = any(suffix.startswith((".hei", ".hif")) for suffix in found)
        mend = "pip install pillow-heif reads HEIC; " if heif else ""
        warnings.warn(
            f"left out: {counted(len(images), 'image')} in {folder} that dmvae does not read ({told}; the first "
            f"is {images[0]}); {mend}convert them to PNG or JPEG to use them",
            stacklevel=3,
        )


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _walk(
    folder: Path, others: list[str], nested: bool = True, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[os.DirEntry]:
    """The visible image files, links followed. What can be no image and would never end, such as a FIFO or a device, is
    left out with a warning, and so is a link to one of the folders `above` it; a link that leads nowhere is taken
    along, to be told as an unreadable image. `others` gets the files with other endings."""
    here = _place(folder)
    if here in above:
        warnings.warn(f"left out: {folder} leads back to a folder that it lies in", stacklevel=2)
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        mode = _stat(entry.path).st_mode
        if stat.S_ISDIR(mode):
            if nested:
                yield from _walk(Path(entry.path), others, above=(*above, here))
        elif _suffix(entry.name) not in SUFFIXES:
            others.append(entry.path)
        else:
            if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                yield entry
            else:
                others.append(entry.path)
                warnings.warn(f"left out: {entry.path} is no regular file; remove it", stacklevel=2)


def _entry(entry: os.DirEntry, path: str, label: int) -> Entry:
    found = _stat(entry.path)
    return Entry(path, label, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _place(folder: Path | str) -> tuple[int, int]:
    """One for each folder, whatever links lead there."""
    found = _stat(str(folder))
    return found.st_dev, found.st_ino


def _stat(path: str) -> os.stat_result:
    """Of the file; of the link itself where it leads nowhere, or round in a circle."""
    try:
        return os.stat(path)
    except OSError:
        return os.lstat(path)
