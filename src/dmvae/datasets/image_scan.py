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
from itertools import chain
from pathlib import Path

from dmvae.datasets import Split
from dmvae.datasets.image_file import NEVER, SOMETIMES, SUFFIXES
from dmvae.datasets.listed import LIST, listed_labels
from dmvae.datasets.skipped import note
from dmvae.runtime.words import counted

HELD_OUT = ("test", "val", "valid", "validation")
ALMOST = frozenset(["train", "training", "trainset", "test", "testing", "testset", "dev", "eval", *HELD_OUT])
"""Usual names of splits' folders, in lower case. If a folder has no others, they are not taken for classes."""
SETTLED = 2.0
"""Seconds. A file that changed so recently may change again with the same time stamp, since these are coarse on some
file systems; so its index is not kept."""
TRAINED_ON = frozenset(["train", "training", "trainset", "trn"])
"""Words in the names of folders to train on, such as train_images."""


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
    """When its content, name, rights or times last changed."""


def settled(ctime_ns: int, now: int) -> bool:
    """Whether a further change of a file, last changed at `ctime_ns`, would show in its time. Both in ns since 1970."""
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
    """Warn of class folders that look like splits: each holds only folders, and some folders' names are in all of them.
    Raises ValueError if one is named like a folder to train on."""
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
    """The folders in which every visible image is used: train/ and test/ of `root`, or `root` itself."""
    found = _folders(root)
    held_out = _held_out(found)
    return [root / "train", root / held_out] if "train" in found and held_out else [root]


def _loose(folder: Path) -> bool:
    """Whether images lie directly in the folder."""
    return any(_suffix(name) in SUFFIXES for name in os.listdir(folder) if not name.startswith("."))


def _held_out(found: list[str]) -> str | None:
    return next((name for name in HELD_OUT if name in found), None)


def scan(folder: Path) -> tuple[list[Entry], tuple[str, ...]]:
    """(every image below `folder`, sorted by path, the class names). Where dataset.json lists labels, the classes are
    their numbers. Raises ValueError for a folder without images, a class without images, loose images beside class
    folders, and an image that such a list leaves out."""
    others: list[str] = []
    loose = list(_walk(folder, others, nested=False))
    above = tuple(map(_place, (folder, *folder.resolve().parents)))
    by_class = {name: list(_walk(folder / name, others, above=above)) for name in _folders(folder)}
    labels = listed_labels(folder)
    _tell(folder, [path for path in others if labels is None or path != str(folder / LIST)])  # a list is read
    full = [name for name, entries in by_class.items() if entries]
    if not loose and not full:
        tables = any(path.endswith(".parquet") for path in others)
        raise ValueError(
            f"data.root: no images in {folder}; looked for {' '.join(sorted(SUFFIXES))}"
            + ("; for its .parquet files set data.type to huggingface" if tables else "")
        )
    if labels is not None:
        found = [
            _entry(e, Path(e.path).relative_to(folder).as_posix(), 0) for e in [*loose, *chain(*by_class.values())]
        ]
        return _listed(folder, sorted(found, key=lambda e: e.path), labels)
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
    # a name that is no UTF-8, as from an old archive, could not be written to text files
    classes = tuple(os.fsencode(name).decode(errors="backslashreplace") for name in full)
    return sorted(entries, key=lambda e: e.path), classes


def _listed(folder: Path, entries: list[Entry], labels: dict[str, int]) -> tuple[list[Entry], tuple[str, ...]]:
    """The images with their labels from dataset.json, and the class names, "0" to the largest."""
    if not labels:
        return entries, ("all",)
    if missing := [entry.path for entry in entries if entry.path not in labels]:
        raise ValueError(
            f"data.root: {folder / LIST} gives no label for {missing[0]} ({counted(len(missing), 'such image')}): "
            "remove those, add them, or move the list away where the folders are the classes"
        )
    classes = tuple(str(number) for number in range(max(labels.values()) + 1))
    return [replace(entry, label=labels[entry.path]) for entry in entries], classes


def path_fraction(path: str) -> float:
    """A pseudo-random number in [0, 1) from the path alone, by which files are ordered and split."""
    return int.from_bytes(hashlib.sha256(path.encode(errors="surrogateescape")).digest()[:6], "big") / 2**48


def _relabel(folder: Path, classes: tuple[str, ...]) -> list[Entry]:
    """The held-out files, with the labels of the training classes. Raises ValueError for classes that do not match."""
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
    found = (e for e in os.scandir(folder) if not e.name.startswith((".", "__MACOSX")))  # a Mac's .zip has the latter
    return sorted(e.name for e in found if stat.S_ISDIR(_stat(e.path).st_mode))


def _tell(folder: Path, others: list[str]) -> None:
    """Warn of image files that are not read; note them, and the number of other files, for skipped.txt."""
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
    """The visible image files, links followed. Left out with a warning: files that are not regular, such as a pipe or a
    device, whose reading may never end, and a link to one of the folders `above` it. A broken link is kept: it will be
    reported as an unreadable image. `others` gets the files with other endings."""
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
        elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            yield entry
        else:
            others.append(entry.path)
            warnings.warn(f"left out: {entry.path} is no regular file; remove it", stacklevel=2)


def _entry(entry: os.DirEntry, path: str, label: int) -> Entry:
    found = _stat(entry.path)
    return Entry(path, label, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _place(folder: Path | str) -> tuple[int, int]:
    """An id of the folder itself, the same through all links to it."""
    found = _stat(str(folder))
    return found.st_dev, found.st_ino


def _stat(path: str) -> os.stat_result:
    """stat of the file, or of the link itself if it is broken or circular."""
    try:
        return os.stat(path)
    except OSError:
        return os.lstat(path)
