"""Files of latents with their images' names and labels: shards that `encode` writes, and what `decode` reads."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from dmvae.runtime.files import whole, write_tensors

SUFFIXES = {"safetensors": ".safetensors", "webdataset": ".tar"}


def read_latents(path: Path) -> Tensor:
    """The latents [n, C, H, W] of one file. Raises ValueError when it holds none."""
    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                if "latents" not in file.keys():  # noqa: SIM118  # not a mapping
                    raise ValueError(f"it has no tensor called 'latents', but {', '.join(file.keys()) or 'nothing'}")
                z = file.get_tensor("latents")
                _require_sum((file.metadata() or {}).get("crc32"), [z.numpy()])
        elif path.suffix == ".npy":
            z = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                arrays = [np.load(io.BytesIO(tar.extractfile(m).read()), allow_pickle=False) for m in _arrays(tar)]  # type: ignore[union-attr]
                _require_sum(tar.pax_headers.get("comment"), arrays)
            z = torch.from_numpy(np.stack(arrays))
        else:
            raise ValueError("they are read from .safetensors, .npy and .tar files")
        if z.ndim != 4:
            raise ValueError(f"they have the shape [n, C, H, W], not {list(z.shape)}")
    return z


def read_names(path: Path) -> list[str]:
    """The names of the latents' images, relative paths; none where the file has no names. Raises ValueError for a file
    that cannot be read, and for a name that leads out of the folder it is relative to."""
    found: Any = []
    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found = json.loads((file.metadata() or {}).get("names", "[]"))
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                found = [m.name.removesuffix(".npy") for m in _arrays(tar)]
        names = [PurePosixPath(name) for name in found]
    for name in names:
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise ValueError(f"{path} names an image {str(name)!r}, which is no file below --out: name it otherwise")
    return [name.as_posix() for name in names]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong, a ValueError that names the file: of damaged bytes these readers raise almost any type."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: no latents that can be read: {error}") from error


def _arrays(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members = [m for m in tar.getmembers() if m.isfile() and m.name.endswith(".npy")]
    if not members:
        raise ValueError("it holds no .npy")
    return members


def write_safetensors(path: Path, z: Tensor, names: list[str], labels: list[int]) -> None:
    about = {"names": json.dumps(names), "crc32": _sum([z.numpy()])}
    write_tensors(path, {"latents": z.contiguous(), "labels": torch.tensor(labels)}, about)


def write_tar(path: Path, z: Tensor, names: list[str], labels: list[int]) -> None:
    about = {"comment": _sum(z.numpy())}
    with whole(path) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT, pax_headers=about) as tar:
        for latent, name, label in zip(z.numpy(), names, labels, strict=True):
            array = io.BytesIO()
            np.save(array, latent)
            _add(tar, f"{name}.npy", array.getvalue())
            _add(tar, f"{name}.cls", str(label).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _sum(arrays: Iterable[np.ndarray]) -> str:
    """Of the bytes of arrays, joined."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return f"{crc:08x}"


def _require_sum(kept: str | None, arrays: Iterable[np.ndarray]) -> None:
    """ValueError where latents are not those of which a shard keeps the sum; those of other programs keep none."""
    if kept is not None and kept != _sum(arrays):
        raise ValueError("its checksum is another: it is damaged; copy it again, or delete it and encode anew")
