"""Files: written whole or not at all, one process at a time, and hashed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder under, which takes the place of `path` once the block has ended: readers, and
    whoever comes after a kill or a full disk, find all of it or what was there before. A folder changes places by two
    renames: killed between them, the one that was there is NAME.PID.old.part.

    Raises OSError, also where safetensors has an error of its own for a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # nobody else's, where two write the same
    old = path.with_name(f"{path.name}.{os.getpid()}.old.part")
    _remove(part)
    try:
        yield part
        if path.is_dir():
            path.replace(old)
        part.replace(path)
        _remove(old)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error}); is the disk full?") from error
    finally:
        _remove(part)


def sweep(folder: Path) -> None:
    """Remove what killed writers left below a folder that is this process's alone."""
    for part in folder.rglob("*.part"):
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process has the folder to itself, among those that ask: always, with `wait`. The system frees
    the lock however the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        yield mine
    finally:
        os.close(handle)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file."""
    with whole(path) as part:
        save_file(tensors, part, metadata)
