"""`dmvae measure latents`: the shape of latents that are there already."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from dmvae.commands.parser import require
from dmvae.config import Values
from dmvae.datasets.latent_files import LatentFiles
from dmvae.datasets.mixed import spaced
from dmvae.evaluation.manifest import versions
from dmvae.evaluation.shape import VERSION, shape
from dmvae.evaluation.uniformity import uniformity as density_of

LIMIT = 10000
NUMBERS = 2**27
"""The most numbers of latents that are read, half a GiB: all figures together take some ten times as much."""


def measure_latents(
    latents: str,
    reference: str | None = None,
    *,
    limit: int = LIMIT,
    picture: str | None = None,
    uniformity: bool = False,
) -> Values:
    """The latents in a folder or file, as data: {type: latents} reads them, beside those of a reference or a standard
    Gaussian. limit: the most latents of each, evenly spread. picture: a file to draw them in. uniformity: with figures
    of their map's density. Returns {"metrics", "channels", "verdict", "manifest"}, as files of scores hold it. Raises
    ValueError for files that do not fit, or too few latents."""
    require(1, limit=limit)
    if picture is not None:
        from dmvae.report.shape_picture import draw_shape, require_picture  # matplotlib loads slowly

        require_picture(Path(picture))
    z, labels, told = _some(latents, limit)
    other, of = (None, {"kind": "standard Gaussian"}) if reference is None else _some(reference, limit)[::2]
    even = density_of(z) if uniformity else {}
    figures, arrival = shape(z, labels, other)
    if picture is not None:
        name, beside = ("/".join(Path(path).parts[-2:]) for path in (latents, reference or "a standard Gaussian"))
        draw_shape(Path(picture), z, labels, other, name, beside)
    return {
        "metrics": figures | even,
        "channels": {"mean": z.mean((0, 2, 3)).tolist(), "std": z.std((0, 2, 3)).tolist()},
        "verdict": arrival.verdict,
        "manifest": {
            "reference": of,
            "measured": told,
            "count": told["count"],
            "features": {},
            "protocol": {"shape": VERSION},
            "versions": versions(),
            "device": "cpu",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        },
    }


def _some(path: str, limit: int) -> tuple[Tensor, Tensor | None, Values]:
    """(raw latents float32 [n, C, H, W], labels [n] or None, what a manifest says of them)."""
    files = LatentFiles(Path(path).expanduser())
    count = min(limit, max(1, NUMBERS // torch.Size(files.shape).numel()))
    numbers = None if files.labels is None else files.labels.unique(return_inverse=True)[1]
    index = spaced(torch.zeros(len(files), dtype=torch.int64) if numbers is None else numbers, count)
    # numbers of classes from 0 on without gaps: whatever they are here, they need memory by their count alone
    labels = None if numbers is None else numbers[index]
    told = {
        "kind": "latents",
        "path": path,
        "content": files.fingerprint,
        "shape": list(files.shape),
        "count": len(index),
    }
    return files.read(index).float(), labels, told
