"""Files of latents with their images' names and labels: shards that `encode` writes, and what `decode` reads."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from dmvae.runtime.files import atomic_write, read_sealed, write_sealed

SUFFIXES = {"safetensors": ".safetensors", "webdataset": ".tar"}


def read_latents(path: Path) -> Tensor:
    """The latents [n, C, H, W] of one file. Raises ValueError for a file that is damaged or holds none, or another
    shape, or no real numbers."""
    with _reading(path):
        if path.suffix == ".safetensors":
            tensors, _ = read_sealed(path)
            if "latents" not in tensors:
                raise ValueError(f"expected a tensor called 'latents', found {', '.join(tensors) or 'none'}")
            z = tensors["latents"]
        elif path.suffix == ".npy":
            z = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers() if m.isfile()]  # type: ignore[union-attr]
                comment = tar.pax_headers.get("comment", "")  # files of other programs have none, or another
                if comment.startswith("dmvae ") and comment != _seal(members):
                    raise ValueError("damaged: its checksum is another; copy it again, or delete it and encode anew")
                named = set(_arrays(tar))
                arrays = [np.load(io.BytesIO(data), allow_pickle=False) for name, data in members if name in named]
            z = torch.from_numpy(np.stack(arrays))
        else:
            raise ValueError(f"latents are read from .safetensors, .npy and .tar files, not {path.suffix or 'this'}")
        if z.ndim != 4:
            raise ValueError(f"latents have the shape [n, C, H, W], not {list(z.shape)}")
        if z.is_complex() or z.dtype == torch.bool or not z.numel():
            raise ValueError(f"latents are real numbers, at least one, not {list(z.shape)} of {z.dtype}")
    return z


def count_latents(path: Path) -> int:
    """How many latents a file holds; of .safetensors and .tar only the headers are read. Raises ValueError."""
    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return file.get_slice("latents").get_shape()[0] if "latents" in file.keys() else 0  # noqa: SIM118
        if path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                return len(_arrays(tar))
    return len(read_latents(path))


def read_names(path: Path) -> list[str]:
    """The names of the latents' images, relative paths; none where the file has no names. Raises ValueError for a file
    that cannot be read, and for a name that leads out of the folder it is relative to."""
    found: list[str] = []
    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found = json.loads((file.metadata() or {}).get("names", "[]"))
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                found = [name.removesuffix(".npy") for name in _arrays(tar)]
        names = [PurePosixPath(name) for name in found]
    for name in names:
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise ValueError(f"{path} names an image {str(name)!r}, which is no file below --out; rename it there")
    return [name.as_posix() for name in names]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn every error into a ValueError that names the file: damaged bytes make readers raise almost any type."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: no latents that can be read: {str(error).removeprefix(f'{path}: ')}") from error


def _arrays(tar: tarfile.TarFile) -> list[str]:
    names = [m.name for m in tar.getmembers() if m.isfile() and m.name.endswith(".npy")]
    if not names:
        raise ValueError("it holds no .npy")
    return names


def write_safetensors(path: Path, z: Tensor, names: list[str], labels: list[int]) -> None:
    write_sealed(path, {"latents": z.contiguous(), "labels": torch.tensor(labels)}, {"names": json.dumps(names)})


def write_tar(path: Path, z: Tensor, names: list[str], labels: list[int]) -> None:
    members = []
    for latent, name, label in zip(z.numpy(), names, labels, strict=True):
        array = io.BytesIO()
        np.save(array, latent)
        members += [(f"{name}.npy", array.getvalue()), (f"{name}.cls", str(label).encode())]
    about = {"comment": _seal(members)}
    with atomic_write(path) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT, pax_headers=about) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _seal(members: Iterable[tuple[str, bytes]]) -> str:
    """A checksum of names and contents."""
    crc = 0
    for name, content in members:
        crc = zlib.crc32(content, zlib.crc32(name.encode(errors="surrogateescape"), crc))
    return f"dmvae {crc:08x}"
