"""Training state as torch.distributed.checkpoint folders: atomic, verified, the last two kept.

A folder is written beside its final name, listed with the size and CRC of every file, flushed to
disk and renamed; a reader checks the list before it trusts the folder.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dmvae.runtime import distributed
from dmvae.runtime.files import flush, sync

_LIST = "files.json"
_KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` (nested dicts of tensors and numbers) as folder/step-N, then drop all but the newest two.

    Raises OSError when the disk is full: what was saved before stays whole.
    """
    final, part = folder / f"step-{step:08d}", folder / f"step-{step:08d}.part"
    if distributed.is_main():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    distributed.barrier()
    try:
        _quietly(dcp.save, state, checkpoint_id=part)
    except CheckpointException as error:  # torch hides what the file system said in it
        reason = str(error).strip().splitlines()[-1]
        raise OSError(
            f"the checkpoint of step {step} could not be written to {folder} ({reason}); is the disk full? "
            "Free some space and start the same command again: it goes on from the checkpoint before"
        ) from error
    if distributed.is_main():
        files = {f.name: [f.stat().st_size, _crc(f)] for f in part.iterdir()}
        (part / _LIST).write_text(json.dumps(files))
        flush(part)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        sync(folder)
        for old in steps(folder)[:-_KEEP]:
            shutil.rmtree(folder / f"step-{old:08d}")
    distributed.barrier()


def steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in `folder`, ascending."""
    return sorted(int(f.name[5:]) for f in folder.glob("step-*") if f.name[5:].isdigit())


def load(folder: Path, state: dict[str, Any]) -> int | None:
    """Fill `state` in place from the newest intact checkpoint; returns its step, or None without any.

    A damaged checkpoint is passed over with a warning. One whose tensors have other shapes raises ValueError.
    """
    for step in reversed(distributed.share(steps(folder))):
        path = folder / f"step-{step:08d}"
        damage = distributed.share(_damage(path) if distributed.is_main() else None)
        if damage:
            warnings.warn(f"{path}: {damage}; trying the checkpoint before it", stacklevel=2)
            continue
        try:
            _quietly(dcp.load, state, checkpoint_id=path)
        except (CheckpointException, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{path}: holds the state of another architecture ({reason}); remove the folder"
            ) from error
        return step
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with the folder's files, or None."""
    try:
        files = json.loads((path / _LIST).read_text())
    except (OSError, json.JSONDecodeError):
        return f"{_LIST} is missing or unreadable"
    for name, (size, crc) in files.items():
        file = path / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes of {size}"
        if _crc(file) != crc:
            return f"{name} is corrupt"
    return None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc


def _quietly(function, *args, **kwargs) -> None:
    """DCP warns that it runs without a process group, which is what a single process means to do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(*args, **kwargs)
