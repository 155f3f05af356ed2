"""Hashes of files, tensors and networks, and of what counts in a fingerprint besides the values of fields."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from dmvae.registry import Registered, is_ours


def sha256_of(file: Path) -> str:
    """Hex sha256 of a file's content, read once per process while its size and time of change stay the same."""
    stat = file.stat()
    return _sha256(file, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            sha.update(block)
    return sha.hexdigest()


def crc(file: Path) -> int:
    """CRC-32 of a file's content: it finds flipped bits and costs little more than reading."""
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            found = zlib.crc32(block, found)
    return found


def content_hash(paths: Iterable[Path]) -> str:
    """16 hex digits of the sha256 of the names and contents of files and folders; a missing one counts by its name."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(path.name.encode())
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                if file != path:
                    sha.update(os.fsencode(file.relative_to(path)))
                sha.update(bytes.fromhex(sha256_of(file)))
    return sha.hexdigest()[:16]


def artifact_hash(folder: Path) -> str:
    """16 hex digits of the config and the weights in a folder, whatever else lies there."""
    kinds = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.bin")
    return content_hash(sorted(file for kind in kinds for file in folder.glob(kind)))


def digest(*parts: object) -> str:
    """16 hex digits of the sha256 of the parts; tensors count by dtype, shape and bytes."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(repr((part.dtype, tuple(part.shape))).encode())
            sha.update(part.contiguous().numpy().data)
        else:
            sha.update(repr(part).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def bytes_hash(blocks: Iterable[bytes]) -> str:
    """16 hex digits of the sha256 of many blocks of bytes, each with its length."""
    sha = hashlib.sha256()
    for block in blocks:
        sha.update(len(block).to_bytes(8, "little"))
        sha.update(block)
    return sha.hexdigest()[:16]


def weights_hash(network: nn.Module) -> str:
    """16 hex digits of the sha256 of a network's tensors and their names."""
    sha = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def content_of(member: Registered) -> str:
    """The `fingerprint` of a part, and a hash of the files in its fields of type Path, except fields of the class that
    defines `fingerprint`."""
    owner = next(cls for cls in type(member).__mro__ if "fingerprint" in vars(cls))
    return member.fingerprint() + files_of(member, owner)


def files_of(config: object, known: type) -> str:
    """A hash of the files in a config's fields of type Path that the class `known` does not have; "" without any."""
    names = [f.name for f in fields(config)] if is_dataclass(config) else []
    ours = [f.name for f in fields(known)] if is_dataclass(known) else []
    files = [value for name in names if name not in ours and isinstance(value := getattr(config, name), Path)]
    return content_hash(files) if files else ""


def code_of(cls: type) -> str:
    """A hash of the file (a plugin, or a module of an installed package) that defines a class; "" for our own. For a
    class of a program or a notebook, a hash of its own source lines, or "" if they cannot be found."""
    if is_ours(cls):
        return ""
    if cls.__module__ == "__main__":
        with suppress(OSError, TypeError):
            return digest(inspect.getsource(cls))
        return ""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return content_hash([Path(file)]) if file else ""
