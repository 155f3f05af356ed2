"""done.json, which says that a stage is finished: what it did, and size and checksum of every file that it wrote."""

from __future__ import annotations

import json
import warnings
import zlib
from functools import cache
from pathlib import Path

from dmvae.config import Values
from dmvae.runtime.files import atomic_write, flush

NAME = "done.json"
UNSEALED = ("log.jsonl", "tensorboard", "wandb", "checkpoints")
"""Not checksummed: what only people read, and checkpoints, which are removed when the stage is finished."""


def write_done(folder: Path, facts: Values) -> None:
    """Mark the stage in `folder` as finished; everything that it wrote is flushed to the disk first."""
    flush(folder)
    with atomic_write(folder / NAME) as part:
        part.write_text(json.dumps(facts | {"files": _sealed(folder)}, indent=1))


def read_done(folder: Path) -> Values | None:
    """What done.json says, or None where the stage is not finished: there is no such file, or it cannot be read, which
    gives a warning."""
    file = folder / NAME
    try:
        facts = json.loads(file.read_text())
        if not isinstance(facts, dict) or not isinstance(facts.get("seconds"), int | float):
            raise ValueError("it holds no facts of a stage")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        _warn(f"{file} cannot be read ({error}): the stage counts as unfinished")
        return None
    return facts


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a finished stage, or None. A process reads each folder once. Stages of versions
    that kept no checksums are taken as they are."""
    facts = read_done(folder)
    return None if facts is None else _damage(folder, json.dumps(facts.get("files", {})))


@cache
def _damage(folder: Path, files: str) -> str | None:
    for name, (size, checksum) in json.loads(files).items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes of {size}"
        if crc(file) != checksum:
            return f"{name} is corrupt"
    return None


def crc(file: Path) -> int:
    """CRC-32 of a file's content: it finds flipped bits and costs little more than reading."""
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            found = zlib.crc32(block, found)
    return found


def _sealed(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    named = {path.relative_to(folder): path for path in files}
    return {
        name.as_posix(): (path.stat().st_size, crc(path))
        for name, path in named.items()
        if name.parts[0] not in UNSEALED and name.as_posix() != NAME
    }


@cache
def _warn(text: str) -> None:
    """Once a process: a folder's state is asked for often."""
    warnings.warn(text, stacklevel=4)
