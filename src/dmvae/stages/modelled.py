"""How well a generator models its latents: its samples beside the data's latents, before any decoder.

gFD has two parts, what the decoder loses and what the generator does; this has the second one alone.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dmvae.config import Values
from dmvae.transport.arrival import measure

LEAST, MOST = 64, 5120
"""Sampled latents at least, and latents of the data at most."""


def modelled(sampled: Tensor, data: Tensor, seed: int) -> Values:
    """Figures of sampled latents [n, C, H, W] beside the data's [m, C, H, W], both normalised, in any order: empty for
    too few of either."""
    if len(sampled) < LEAST or 2 * len(data) < 5 * LEAST:
        return {}
    rng = torch.Generator().manual_seed(seed)
    z, y = (x[torch.randperm(len(x), generator=rng)[:MOST]] for x in (sampled, data))
    found = measure(z, y, seed)
    return {
        "modelled": asdict(found),
        "sampled_whole": found.whole,
        "sampled_token": found.token,
        "sampled_told": found.accuracy,
        "sampled_token_told": found.token_accuracy,
        "sampled_spread": found.spread,
        "sampled_rank": found.rank / found.reference_rank,
    }


def kept_latents(folder: Path) -> Tensor:
    """The latents [n, C, H, W] in a folder of samples; none where an earlier version drew them."""
    parts = []
    for path in sorted(folder.glob("samples-*.safetensors")):
        with safe_open(path, "pt") as file:
            if "latents" not in file.keys():  # noqa: SIM118, which no mapping is
                break
            parts.append(file.get_tensor("latents"))
    return torch.cat(parts) if parts else torch.empty(0)
