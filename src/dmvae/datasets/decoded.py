"""Decoded images in a file that is mapped into memory: decoded once, for all stages, processes and ranks.

Shapes: n images, C channels, H height, W width.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from dmvae.datasets.download import cache_folder
from dmvae.runtime.done import damage, read_source, write_source
from dmvae.runtime.files import atomic_write, locked_if_it_can, read_json, sweep_beside

_CHUNK = 2**28  # bytes decoded at a time; so many may be in memory before they are written

Read = Callable[[int], Tensor | str]
"""Index -> the image, uint8 [C, H, W], or why it cannot be read. An OSError that it raises counts as the cache's."""


def decoded(key: str, shape: tuple[int, int, int, int], read: Read) -> tuple[Tensor, dict[int, str]] | None:
    """(the readable images, uint8 [m, C, H, W]; index -> why, for the others) of n images; shape: (n, C, H, W). They
    are kept under ~/.cache/dmvae and found again by `key`, a hash of all that they depend on. None, with a warning,
    where they cannot be kept."""
    folder = cache_folder() / "decoded" / key
    broken = _kept(folder)
    if broken is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked_if_it_can(folder.parent) as mine:  # another process may be decoding the same images
                broken = _kept(folder)
                if broken is None:
                    if mine:
                        sweep_beside(folder)
                    if (needed := int(np.prod(shape))) > (free := shutil.disk_usage(folder.parent).free):
                        raise OSError(f"{needed / 2**30:.1f} GiB do not fit, {free / 2**30:.1f} GiB are free")
                    broken = _decode_all(shape, read, folder)
        except OSError as error:  # a full or foreign folder only costs time
            warnings.warn(
                f"decoded images cannot be kept in {folder.parent} ({error}), so images are decoded whenever they are "
                "read; set XDG_CACHE_HOME to a larger disk",
                stacklevel=3,
            )
            return None
    # mode c, copy on write: PyTorch warns of arrays that cannot be written
    return torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c")), broken


def _kept(folder: Path) -> dict[int, str] | None:
    """What `_decode_all` returned, from its folder; None where this is missing or, with a warning, damaged."""
    facts = read_source(folder)
    if facts is None:
        return None
    try:
        if wrong := damage(folder, facts):
            raise ValueError(f"{folder / wrong[0]} {wrong[1]}")
        return {int(index): str(why) for index, why in read_json(folder / "broken.json", dict).items()}
    except (ValueError, OSError) as error:
        warnings.warn(f"{error}: the images are decoded anew", stacklevel=4)
        return None


def _decode_all(shape: tuple[int, int, int, int], read: Read, folder: Path) -> dict[int, str]:
    """Write images.npy, uint8 [m, C, H, W] of the readable images, and broken.json, index -> reason of the others;
    returns the latter.

    Files are written chunk by chunk, not through a memory map: there a full disk would crash the process.
    """
    n, broken = shape[0], dict[int, str]()
    chunk = max(16, _CHUNK // int(np.prod(shape[1:])))
    with atomic_write(folder) as part, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        part.mkdir()
        with (part / "images.npy").open("wb") as file:
            start = _header(file, (0, *shape[1:]))
            for begin in range(0, n, chunk):
                for index, result in enumerate(pool.map(read, range(begin, min(begin + chunk, n))), begin):
                    if isinstance(result, str):
                        broken[index] = result
                    else:
                        file.write(result.numpy().tobytes())
            file.seek(0)
            # NumPy's header has room for a larger count, so it keeps its length
            same = _header(file, (n - len(broken), *shape[1:]))
            assert same == start
        (part / "broken.json").write_text(json.dumps(broken))
        write_source(part, {})
    return broken


def _header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Write the header of a .npy file of uint8; returns where the data start."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()
