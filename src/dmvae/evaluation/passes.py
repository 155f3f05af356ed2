"""A pass over images: rows that are computed for each of them. They are kept on disk meanwhile, so that a pass that is
interrupted goes on with the same command."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dmvae.evaluation.images import Images
from dmvae.evaluation.rows import gathered
from dmvae.runtime import distributed
from dmvae.runtime.console import Bar
from dmvae.runtime.files import read_sealed, write_sealed
from dmvae.runtime.hashing import digest
from dmvae.runtime.signals import Interrupted

EVERY = 60.0
"""Seconds between two parts on disk; a shorter pass writes none."""
PARTS = "parts-"
"""How the name of the folder with a pass's parts begins."""


def kept_in(folder: Path, *facts: object) -> Path:
    """Where in `folder` the parts of a pass lie. facts: what its rows depend on, besides what `folder` stands for."""
    return folder / f"{PARTS}{digest(json.dumps(facts, sort_keys=True, default=str))}"


def over_images(
    images: Images,
    batch_size: int,
    compute: Callable[[Tensor], dict[str, Tensor]],
    title: str,
    kept: Path | None = None,
) -> dict[str, Tensor]:
    """The rows that `compute` gives for all images, in their order, on the CPU. `compute` maps a batch to named rows
    [n, ...], whatever the batch is. All ranks must call: each takes a share, and all get the whole.

    kept: the folder of `kept_in`, from which an interrupted pass is taken up; the caller removes it when what becomes
    of the rows is safe. None keeps nothing. Raises Interrupted for Ctrl-C, after keeping what there is.
    """
    n, rank, world = len(images), distributed.rank(), distributed.world_size()
    share = -(-n // world)
    chosen = range(min(rank * share, n), min((rank + 1) * share, n))
    rows = _Rows(chosen.start, kept and kept / f"{rank}-of-{world}")
    with Bar(title, n, "images", min(n, world * (rows.stop - chosen.start))) as bar:
        try:
            left = range(rows.stop, chosen.stop)
            for batch in images.batches(left, batch_size) if len(left) else ():
                rows.add(compute(batch))
                bar.step(len(batch) * world)
                if time.monotonic() - rows.saved > EVERY:
                    rows.save()
        except KeyboardInterrupt:
            if rows.save():
                raise Interrupted from None
            raise
    own = _joined(rows.parts)
    return own if world == 1 else _gathered(own, share, n)


class _Rows:
    """The rows of this rank's images so far, of which `stop` is the next. Those of an earlier start lie in `folder`, in
    files that are called after their first image."""

    def __init__(self, start: int, folder: Path | None) -> None:
        self.folder, self.stop, self.saved = folder, start, time.monotonic()
        self.parts: list[dict[str, Tensor]] = []
        for path in sorted(folder.glob("rows-*.safetensors")) if folder else ():
            if path.name == _name(self.stop):
                try:
                    self.add(read_sealed(path)[0])
                except ValueError as error:
                    warnings.warn(f"{error}: its images are measured anew", stacklevel=4)
        self.on_disk = len(self.parts)

    def add(self, rows: dict[str, Tensor]) -> None:
        self.parts.append({name: values.cpu().contiguous() for name, values in rows.items()})
        self.stop += _count(rows)

    def save(self) -> bool:
        """Write what is not on disk; whether it could be."""
        new = _joined(self.parts[self.on_disk :])
        try:
            if self.folder and new:
                write_sealed(self.folder / _name(self.stop - _count(new)), new, {})
        except OSError as error:  # a full or foreign folder only costs time, where the pass is interrupted
            warnings.warn(f"a pass over images cannot be kept ({error}): interrupted it begins anew", stacklevel=3)
            self.folder = None
        self.on_disk, self.saved = len(self.parts), time.monotonic()
        return self.folder is not None


def _name(first: int) -> str:
    return f"rows-{first:09d}.safetensors"


def _count(rows: dict[str, Tensor]) -> int:
    return len(next(iter(rows.values())))


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _gathered(own: dict[str, Tensor], share: int, n: int) -> dict[str, Tensor]:
    """The rows of all ranks; a rank without images has none of its own."""
    device = distributed.start()
    shapes = distributed.broadcast({name: (values.shape[1:], values.dtype) for name, values in own.items()})
    rows = {name: own.get(name, torch.zeros(0, *shape, dtype=dtype)) for name, (shape, dtype) in shapes.items()}
    return {name: gathered(values.to(device), share)[:n].cpu() for name, values in rows.items()}
