"""done.json, which says that a stage is finished: what it did, and size and checksum of every file that it wrote."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

from dmvae.config import Values
from dmvae.runtime.files import flush, read_json, write_json
from dmvae.runtime.hashing import crc

NAME = "done.json"
SOURCE = "source.json"
"""In a pipeline's folder, and in one of kept images: what it was made of, and its files."""
UNSEALED = ("log.jsonl", "pictures", "tensorboard", "wandb", "checkpoints")
"""Have no checksum: files that only people read, and checkpoints, which are removed when the stage is finished."""


def write_done(folder: Path, facts: Values) -> None:
    """Mark the stage in `folder` as finished; everything that it wrote is flushed to the disk first."""
    flush(folder)
    facts = facts | {"files": sealed(folder, (*UNSEALED, NAME))}
    write_json(folder / NAME, facts)


def read_done(folder: Path) -> Values | None:
    """What done.json says; None where the stage is not finished: the file is missing or, with a warning, damaged.
    Files of earlier versions have no checksum."""
    return _read(folder / NAME, "the stage counts as unfinished")


def sealed(folder: Path, without: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Name -> (size, checksum) of every file in a folder but those `without`; links are left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    named = {path.relative_to(folder): path for path in files}
    return {
        name.as_posix(): (path.stat().st_size, crc(path))
        for name, path in named.items()
        if name.parts[0] not in without
    }


def damage(folder: Path, facts: Mapping[str, object] | None, within: str = "") -> tuple[str, str] | None:
    """The first of `damages`, or None."""
    return next(damages(folder, facts, within), None)


def damages(folder: Path, facts: Mapping[str, object] | None, within: str = "") -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of every listed file that is not as it was written. within: only this file or folder. A
    process reads each file once. Facts of versions that kept no checksums yield nothing."""
    for name, (size, checksum) in _listed(facts or {}).items():
        file = folder / name
        if within and not PurePosixPath(name).is_relative_to(within):
            continue
        if not file.is_file():
            yield name, "is missing"
        elif (stat := file.stat()).st_size != size:
            yield name, f"has {stat.st_size} bytes of {size}"
        elif _crc(file, size, stat.st_mtime_ns) != checksum:
            yield name, "is corrupt"


def require_intact(path: Path) -> Path:
    """`path`, a file or folder of a finished stage or of a pipeline. Raises ValueError where a file of it is missing or
    differs from the size and checksum that were recorded. A path that belongs to neither is returned unchecked."""
    for folder in (path, *path.parents[:3]):  # as deep as snapshots/step-N/generator
        facts = read_done(folder) if (folder / NAME).is_file() else read_source(folder)
        if facts is not None:
            within = path.relative_to(folder).as_posix()
            if wrong := damage(folder, facts, "" if within == "." else within):
                what = f"{folder / wrong[0]} {wrong[1]}"
                raise ValueError(f"{what}: it is not as it was written; `dmvae run` of the recipe makes it anew")
            break
    return path


def write_source(pipeline: Path, source: Values) -> None:
    """Record in a folder (of a pipeline or of kept images) what it was made of, and the files that it holds now."""
    write_json(pipeline / SOURCE, source | {"files": sealed(pipeline, ("README.md",))})


def read_source(pipeline: Path) -> Values | None:
    """What `write_source` wrote; None where the file is missing or, with a warning, damaged."""
    return _read(pipeline / SOURCE, "nothing is known of the files beside it")


def _read(file: Path, so: str) -> Values | None:
    try:
        facts: Values = read_json(file, dict)
        if file.name == NAME and not isinstance(facts.get("seconds"), int | float):
            raise ValueError(f"{file} is damaged: it holds no facts of a stage")
        _listed(facts, file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        _warn(f"{error}: {so}")
        return None
    return facts


def _listed(facts: Mapping[str, object], file: Path | str = NAME) -> dict[str, list[int]]:
    """Name -> [size, checksum] of the files that facts list. Raises ValueError for no such list, and for a name that
    leads out of the folder: the list may come from somebody else, and damaged files are removed."""
    files = facts.get("files", {})
    if not isinstance(files, dict):
        raise ValueError(f"{file} is damaged: its list of files is no mapping")
    for name, about in files.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not place.name:
            raise ValueError(f"{file} names {name!r}, which is no file of its folder")
        if not (isinstance(about, list | tuple) and len(about) == 2 and all(isinstance(x, int) for x in about)):
            raise ValueError(f"{file} is damaged: it has no size and checksum of {name!r}")
    return files


@cache
def _crc(file: Path, size: int, mtime_ns: int) -> int:
    return crc(file)


@cache
def _warn(text: str) -> None:
    """Warn once per process: a folder's state is asked for often."""
    warnings.warn(text, stacklevel=5)
