"""Training state as torch.distributed.checkpoint folders: atomic, verified, the last few kept.

A folder is written beside its final name, listed with the size and CRC of every file, flushed to
disk and renamed; a reader checks the list before it trusts the folder. Every rank takes the CRC of
what it writes as it writes it; nothing is read again.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from dmvae.config import Values
from dmvae.runtime import distributed, sharding
from dmvae.runtime.done import damage
from dmvae.runtime.files import flush, read_json, remove, sync

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LIST = "files.json"
_REFUSED = "refused the name "
_PLAIN = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip
"""Module -> names that the pickled part of a checkpoint may load."""
PLANNED = "planned.json"
"""Beside the checkpoints of a stage that `prolongs`: of how many steps the training is."""
_KEEP = 2
_BUFFER = 1 << 20


class Background:
    """Checkpoints that are written by a thread while training goes on, one at a time.

    The state is copied to the CPU first; what all ranks have alike is copied by rank 0 alone. If the process is killed
    while a checkpoint is written, the earlier ones stay whole.

    Not `dcp.async_save`: on every rank it copies what all ranks have alike, for XL/1 up to 10 GiB of a node's memory
    for each of its GPUs. And its future ends when the files are written, so listing, flushing and renaming them, and
    dropping older ones, would need another thread.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.running: Future[None] | None = None

    def save(self, folder: Path, step: int, state: Values, back: int = 0, every: int = 1) -> None:
        """Wait for the previous checkpoint, copy the state to the CPU, and run the function `save` in the thread."""
        self.wait()
        self.running = self.thread.submit(save, folder, step, _copied(state), back, every)

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises OSError where it could not be."""
        running, self.running = self.running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait for the last checkpoint and ignore its error, which would hide the one that ended the training."""
        if self.running is not None:
            futures.wait([self.running])


def _copied(state: Values) -> Values:
    """The part of nested dicts that this rank writes, on the CPU: its shards, and on rank 0 everything else."""
    mine: Values = {}
    for name, value in state.items():
        if isinstance(value, dict):
            if (part := _copied(value)) or distributed.is_main():
                mine[name] = part
        elif isinstance(value, torch.Tensor):
            if sharding.is_sharded(value) or distributed.is_main():
                mine[name] = value.detach().to("cpu", copy=True)
        elif distributed.is_main():
            mine[name] = deepcopy(value)
    return mine


def save(folder: Path, step: int, state: Values, back: int = 0, every: int = 1) -> None:
    """Write `state` (nested dicts of tensors and numbers) as folder/step-N, then drop all but the newest two.

    With `back`, checkpoints at multiples of `every` are kept too: the newest two, the newest that is at least `back`
    steps older than the last of them, and the one after it, which will take its place. So a training can go back by
    `back` steps, and stops in between do not change to which step.

    All ranks must call. Raises OSError when the disk is full: earlier checkpoints stay whole.
    """
    final, part = folder / f"step-{step:08d}", folder / f"step-{step:08d}.part"
    if distributed.is_main():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    group = distributed.background()  # a group of its own: the training's collectives go on beside it
    distributed.barrier(group)
    # no copying ahead: for that, torch would use a stream of the first GPU on every rank
    writer = FileSystemWriter(part, per_thread_copy_ahead=0)
    writer.fs = files = _Listing()
    try:
        _quietly(dcp.save, state, storage_writer=writer, process_group=group)
    except CheckpointException as error:  # torch hides the file system's error in it
        reason = str(error).strip().splitlines()[-1]
        raise OSError(
            f"the checkpoint of step {step} could not be written to {folder} ({reason}); is the disk full? "
            "Free some space and start the same command again: it goes on from the checkpoint before, if any"
        ) from error
    listed = distributed.collect(files.written, group)
    if distributed.is_main():
        written = {name: about for of_rank in listed for name, about in of_rank.items()}
        there, sizes = {f.name: f.stat().st_size for f in part.iterdir()}, {name: n for name, (n, _) in written.items()}
        if wrong := sorted(dict(there.items() ^ sizes.items())):
            raise OSError(f"{part}: {', '.join(wrong)} not as written a moment ago; does another process write there?")
        (part / _LIST).write_text(json.dumps(written))
        flush(part)
        aside = final.with_suffix(".old")  # an older checkpoint of that step is removed only when this one is in place
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        part.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
        sync(folder)
        # those of later steps are damaged, or the training would have gone on from them: they take nobody's place
        known = [s for s in steps(folder) if s <= step]
        kept: set[int | None] = {*known[-_KEEP:]}
        if back:
            due, older = [s for s in known if s % every == 0], newest(folder, step - step % every - back, every)
            following = next((s for s in due if older is None or s > older), None)
            kept |= {*due[-_KEEP:], older, following}
        for old in set(known) - kept:
            _remove(folder / f"step-{old:08d}")
    distributed.barrier(group)


def steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in `folder`, ascending."""
    return sorted(int(f.name[5:]) for f in folder.glob("step-*") if f.name[5:].isdigit())


def newest(folder: Path, until: int, every: int) -> int | None:
    """The newest checkpoint up to step `until` at a multiple of `every`, or None."""
    return max((step for step in steps(folder) if step <= until and step % every == 0), default=None)


def forget(folder: Path, after: int) -> None:
    """Remove the checkpoints of steps later than `after`; all ranks must call."""
    if distributed.is_main():
        for later in steps(folder):
            if later > after:
                _remove(folder / f"step-{later:08d}")
    distributed.barrier()


def settle(folder: Path) -> None:
    """Remove the checkpoints of a finished stage but that of its last step, where there is one: a longer training goes
    on from it."""
    last = None
    with suppress(OSError, ValueError, KeyError):
        last = folder / f"step-{read_json(folder / PLANNED, dict)['steps']:08d}"
    if last is None or not last.exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path.name not in (last.name, PLANNED):
            remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint: its name goes first, so that a kill meanwhile leaves none that lacks files and counts."""
    shutil.rmtree(path.rename(path.with_suffix(".part")))


def load(folder: Path, state: Values, optional: tuple[str, ...] = ()) -> int | None:
    """Fill `state` in place from the newest intact checkpoint; returns its step, or None without any. optional: dotted
    entries that checkpoints of older versions lack; they are then left as they are.

    All ranks must call. A damaged checkpoint is skipped with a warning. Raises ValueError where tensors have other
    shapes, or where the file would run code.
    """
    if distributed.is_main():
        for aside in folder.glob("step-*.old"):  # a process was killed between its two renames
            final = aside.with_suffix("")
            shutil.rmtree(aside) if final.exists() else aside.rename(final)
    for step in reversed(distributed.broadcast(steps(folder))):
        path = folder / f"step-{step:08d}"
        broken = distributed.broadcast(_damage(path) if distributed.is_main() else None)
        if broken:
            warnings.warn(f"{path}: {broken}; trying the checkpoint before it", stacklevel=2)
            continue
        try:
            there = _Reader(path).read_metadata().state_dict_metadata
            lacking = [place for place in optional if not any(f"{name}.".startswith(f"{place}.") for name in there)]
            with ExitStack() as without:
                for place in lacking:
                    without.enter_context(_without(state, place))
                _quietly(dcp.load, state, storage_reader=_Reader(path), planner=_Planner())
        except (CheckpointException, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            if refused := _refusal(error):
                raise ValueError(
                    f"{path}: refused, because it asks for {refused}: loading it would run code that it names. Remove "
                    "the folder; the stage then begins anew"
                ) from error
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{path}: holds the state of another architecture ({reason}); remove the folder"
            ) from error
        return step
    return None


@contextmanager
def _without(state: Values, place: str) -> Iterator[None]:
    """Inside the block, the state is without the part at a dotted place, if it has one."""
    *parents, last = place.split(".")
    for name in parents:
        state = state.get(name, {})
    part = state.pop(last, None)
    try:
        yield
    finally:
        if part is not None:
            state[last] = part


class _Listing(FileSystem):
    """The file system that torch writes through; it keeps the size and the CRC of each file that is written."""

    def __init__(self) -> None:
        self.written: dict[str, tuple[int, int]] = {}

    @contextmanager
    def create_stream(self, path: str | PathLike[str], mode: str) -> Iterator[io.IOBase]:
        file = _Counted(path, mode)
        with io.BufferedWriter(file, _BUFFER) as stream:
            yield stream
        self.written[Path(path).name] = file.size, file.crc

    def rename(self, path: str | PathLike[str], new_path: str | PathLike[str]) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class _Counted(io.FileIO):
    """A file that is written from start to end; it counts its bytes and their CRC."""

    size = crc = 0

    def write(self, data: Buffer) -> int:
        written = super().write(data)
        self.crc, self.size = zlib.crc32(memoryview(data)[:written], self.crc), self.size + written
        return written


class _Unpickler(pickle.Unpickler):
    """Accepts only the class names that a checkpoint's list of tensors needs: the folder may come from anybody."""

    def find_class(self, module: str, name: str) -> object:
        known = module in _PLAIN and name in _PLAIN[module]
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{_REFUSED}{module}.{name}")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # raises for other classes; torch's own reader below is not restricted
        value.seek(0)
        super().load_bytes(read_item, value)


def _refusal(error: BaseException) -> str | None:
    """The class name that an unpickler refused, or None for another error. It is found in the text, because torch wraps
    the errors of ranks in one of its own."""
    found = re.search(rf"(?:{_REFUSED}|GLOBAL )(\S+)", str(error))
    return found[1] if found else None


def _damage(path: Path) -> str | None:
    """What is wrong with the folder's files, or None."""
    try:
        listed = json.loads((path / _LIST).read_text())
        wrong = damage(path, {"files": listed})
    except (OSError, ValueError, RecursionError):
        return f"{_LIST} is missing or unreadable"
    for name in sorted({file.name for file in path.iterdir()} - {_LIST, *listed}):
        return f"{name} is not in {_LIST}"
    return " ".join(wrong) if wrong else None


def _quietly(function: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Call it without DCP's warning that there is no process group: a single process needs none."""
    # never undone: restoring filters in a thread could undo those of another thread
    warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint")
    function(*args, **kwargs)
