"""Files: atomic writes that are flushed to the disk, checksums, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dmvae.runtime.hashing import digest

T = TypeVar("T")
SEAL = "crc32"
"""The key of a sealed file's checksum, inside that file."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Atomic write: yields a temporary path; the file or folder written there replaces `path` when the block ends.

    Readers find the whole new content, or the old one, also after a kill, a full disk or a power cut. A folder is
    replaced by two renames; a process killed between them leaves the previous folder as NAME.*.old.part. A link at
    `path` is replaced, not followed. Raises OSError, also in place of safetensors' own error for a full disk, and for a
    file that would replace a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # file systems take names of up to 255 bytes, and the temporary name is longer
    name = path.name if len(os.fsencode(path.name)) < 220 else digest(path.name) + path.suffix[-8:]
    own = f"{os.getpid()}-{secrets.token_hex(4)}"  # a process number alone is not unique: containers share them
    scratch, old = path.with_name(f"{name}.{own}.part"), path.with_name(f"{name}.{own}.old.part")
    scratch.mkdir()  # a folder, so that the writer's own temporary files, as safetensors makes, lie in it too
    part = scratch / path.name
    try:
        yield part
        _share(part)
        flush(part)
        if path.is_dir():
            if not (part.is_dir() or path.is_symlink()):
                raise IsADirectoryError(errno.EISDIR, "that is a folder; name a file to write", str(path))
            path.replace(old)
        part.replace(path)
        sync(path.parent)
        remove(old)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error}); is the disk full?") from error
    finally:
        remove(scratch)


def require_place(what: str, path: Path, folder: bool = False) -> None:
    """Raise ValueError, naming the option or field `what`, unless a file can be written at `path` or, with `folder`, a
    folder made there. Call it before hours of work."""
    above = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), path)
    into = path if folder and path.is_dir() else above
    why = ""
    if path.is_dir() if not folder else path.exists() and not path.is_dir():
        why = f"that is a {'file' if folder else 'folder'}"
    elif not above.is_dir():
        why = f"{above} is no folder"
    elif not os.access(into, os.W_OK):
        why = f"{into} cannot be written"
    if why:
        raise ValueError(f"{what} {path}: {why}; name {'another folder' if folder else 'a file to write'}")


def flush(path: Path) -> None:
    """fsync a file, or a folder and all that is in it, so that it survives a power cut."""
    for place in _below(path):
        sync(place)


def sweep(folder: Path, patterns: Iterable[str] = ("**/*.part", "**/.tmp??????")) -> None:
    """Remove the temporary files that killed processes left below a folder that only this process uses. The second
    pattern is that of safetensors' own temporary files."""
    for pattern in patterns:
        for part in [*folder.glob(pattern)]:
            remove(part)


def sweep_beside(path: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote this file. No other process may write it
    now."""
    sweep(path.parent, (f"{glob.escape(path.name)}.[0-9]*.part",))


def within(path: Path, folder: Path) -> Path:
    """`path` itself, if it lies in `folder` after links are followed. Raises ValueError if it leads out of it."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path} leads to {path.resolve()}, out of {folder}: nothing is written there; remove the link"
        )
    return path


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Lock the folder: yields True where this process holds the lock. With `wait` it waits until it does; without, it
    yields False where another process holds it. The system frees the lock however this process ends, even if processes
    that it forked live on."""
    handle = os.open(folder, os.O_RDONLY)
    _locks.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        yield mine
    finally:
        if handle in _locks:  # a forked process has closed it already
            _locks.remove(handle)
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def held(folder: Path) -> bool:
    """Whether another process has the folder locked now; False where there is no folder, or no lock on its system."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # along with others that only look
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(handle)
    return False


@contextmanager
def locked_if_it_can(folder: Path, wait: bool = True) -> Iterator[bool]:
    """As `locked`, for work that two processes may do twice without harm: makes the folder, and yields False where that
    fails or its file system has no locks."""
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mine = held.enter_context(locked(folder, wait))
        except OSError:
            mine = False
        yield mine


@contextmanager
def together(path: Path) -> Iterator[bool]:
    """Hold a lock file along with other processes until the block ends: yields True where no other one holds it now."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS needs this for exclusive locks
    except PermissionError:  # the file of another user, in a shared folder
        handle = os.open(path, os.O_RDONLY)
    _locks.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield alone
    finally:
        if handle in _locks:
            _locks.remove(handle)
            os.close(handle)


_locks: set[int] = set()


def _drop_locks() -> None:
    # A lock lives as long as any process has its handle, and a fork copies handles: so a worker would keep it.
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_drop_locks)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON file with a checksum of all that is in it."""
    write_text(path, json.dumps({**values, SEAL: _json_checksum(values)}, indent=1))


def read_json(path: Path, kind: type[T]) -> T:
    """What a JSON file holds. Raises ValueError, naming the file, if it is no JSON or not of this kind, or if its
    checksum does not fit (files of other programs and of earlier versions have none); OSError if it cannot be read."""
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, kind):
            raise ValueError(f"it holds no {kind.__name__}")
        seal = found.pop(SEAL, None) if isinstance(found, dict) else None
        if seal is not None and seal != _json_checksum(found):
            raise ValueError("its checksum does not fit")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return found


def _json_checksum(values: object) -> int:
    return zlib.crc32(json.dumps(values).encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, the same bytes each time: safetensors has its metadata in an order that changes."""
    with atomic_write(path) as part:
        save_file(tensors, part, metadata)
        with part.open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(length))
            header = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            assert len(header) <= length, "the same characters but the padding"
            file.seek(8)
            file.write(header.ljust(length))


def read_head(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file. None if the file is missing, cut short or of another kind, as far as its
    header and length tell."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None


def write_sealed(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with a checksum of all that is in it."""
    write_tensors(path, tensors, metadata | {SEAL: _checksum(tensors, metadata)})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises ValueError for a file of another kind, and where the checksum
    does not fit; files of other programs have no checksum."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or no .safetensors file ({error})") from error
    seal = metadata.pop(SEAL, None)
    if seal is not None and seal != _checksum(tensors, metadata):
        raise ValueError(f"{path}: damaged: its checksum does not fit; copy it again, or delete it and make it anew")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    crc = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {[*tensor.shape]}".encode(), crc)
        crc = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _share(path: Path) -> None:
    """Give files and folders the permissions of the umask: temporary files, such as safetensors', are private."""
    mask = os.umask(0o077)  # the only way to read it; a file that another thread creates now is private, not open
    os.umask(mask)
    for place in _below(path):
        place.chmod((0o777 if place.is_dir() else 0o666) & ~mask)


def _below(path: Path) -> Iterator[Path]:
    """The files and folders in a folder and last the folder itself, or the file alone; links and special files are left
    out."""
    for folder, _, files in os.walk(path, topdown=False):
        yield from (place for name in files if (place := Path(folder, name)).is_file() and not place.is_symlink())
        yield Path(folder)
    if path.is_file():
        yield path


def sync(path: Path) -> None:
    """fsync one file's content, or one folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot fsync a folder
            raise
    finally:
        os.close(handle)
