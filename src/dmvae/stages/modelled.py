"""How well a generator models its latents: its samples beside the data's latents, before any decoder.

gFD has two parts, what the decoder loses and what the generator does; this has the second one alone.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dmvae.transport.arrival import LATENTS, as_items, distances, effective_rank
from dmvae.transport.two_sample import two_sample_accuracy
from dmvae.transport.views import View, tokens, whole

LEAST = 64
"""Sampled latents at least."""
REPEATS = 8
"""Sets of the data's latents that samples are compared with. With one alone a multiple changes by a fifth from set to
set; what is left is the samples' own chance, which other samples show."""
KEPT = 2250
"""Sampled latents that an evaluation chooses from, whatever the batches in which they were drawn: nine of the default
size, as it has always been with that."""
UNEVEN = 1.2
"""Up to this ratio the samples of two classes count as equally many: 12 and 11 do, 3 and 2 do not."""
NUMBERS = 2**28
"""Numbers of the data's latents that are looked at, where that is enough for two sets: a GiB."""


def in_shares(labels: Tensor, of_data: Tensor, drawn: bool = False) -> Tensor:
    """int64, ascending: of samples with these labels some, in the shares that their classes have among the data's
    labels; all where both are even. Other shares would look like a fault of the generator. drawn: each label was drawn,
    all classes being as likely; then counts differ by chance, as those of the data's sets do, and are left to it."""
    if not len(labels):
        return labels
    there = labels.bincount()
    shares = of_data.bincount(minlength=len(there))[: len(there)] * (there > 0)
    # the first samples of many classes, of which some have one more
    if not drawn and there.max() > UNEVEN * there[there > 0].min():
        shares = shares / there.clamp_min(1)
    chance = torch.rand(len(labels), generator=torch.Generator().manual_seed(0))
    return (chance < (shares / shares.max())[labels]).nonzero()[:, 0]


def modelled(sampled: Tensor, data: Tensor, seed: int, count: int = LATENTS) -> dict[str, float]:
    """Figures of sampled latents [n, C, H, W] beside the data's [m, C, H, W], both normalised, in any order, classes in
    like shares (see `in_shares`). `count` of each are compared, or 2 m / 5; multiples of chance grow with them. Empty
    for too few of either."""
    n = min(len(sampled), count, 2 * len(data) // 5)
    if n < LEAST:
        return {}
    rng = torch.Generator().manual_seed(seed)
    most = max(n * 5 // 2, min((REPEATS + 1) * n + n // 2, NUMBERS // data[0].numel()))
    z, y = (x[torch.randperm(len(x), generator=rng)[:k]].float() for x, k in ((sampled, n), (data, most)))
    rest, sets = y[: n // 2], y[n // 2 :].split(n)
    sets = sets[: len(y[n // 2 :]) // n]
    spread, spread_of_data = (x.var(0).sum().sqrt() for x in (z, sets[0]))
    return {
        "sampled_whole": _multiple(whole, z, sets, rest, seed),
        "sampled_token": _multiple(tokens, z, sets, rest, seed),
        "sampled_told": two_sample_accuracy(z.flatten(1)[:, None], sets[0].flatten(1)[:, None], seed),
        "sampled_token_told": two_sample_accuracy(as_items(z), as_items(sets[0]), seed),
        "sampled_spread": float(spread / spread_of_data.clamp_min(1e-12)),
        "sampled_rank": effective_rank(z.flatten(1)) / effective_rank(sets[0].flatten(1)),
    }


def _multiple(view: View, z: Tensor, sets: tuple[Tensor, ...], rest: Tensor, seed: int) -> float:
    """The sliced distance from z to sets of the data over that between sets, root mean squares."""
    found = [distances(view, z, a, b, rest, seed + i) for i, (a, b) in enumerate(pairwise(sets))]
    here, there = (sum(float(x) ** 2 for x in side) for side in zip(*found, strict=True))
    return math.sqrt(here / max(there, 1e-24))


def kept_latents(folder: Path) -> tuple[Tensor, Tensor]:
    """The first KEPT latents [n, C, H, W] in a folder of samples, and their labels [n]; none where an earlier version
    drew them."""
    parts, labels = list[Tensor](), [torch.empty(0, dtype=torch.int64)]
    for path in sorted(folder.glob("samples-*.safetensors")):
        with safe_open(path, "pt") as file:
            if "latents" not in file.keys():  # noqa: SIM118, which no mapping is
                break
            parts.append(file.get_tensor("latents"))
            labels.append(file.get_tensor("labels"))
    return torch.cat(parts)[:KEPT] if parts else torch.empty(0), torch.cat(labels)[:KEPT]
