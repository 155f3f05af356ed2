"""How well a generator models its latents: its samples compared with the data's latents, before any decoder.

gFD contains errors of the decoder and of the generator; these figures contain only the generator's.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dmvae.datasets.mixed import spaced
from dmvae.latents.store import LatentSet, MirroredSet
from dmvae.stages.latents import MIRRORED
from dmvae.transport.arrival import LATENTS, as_items, distances, effective_rank
from dmvae.transport.two_sample import two_sample_accuracy
from dmvae.transport.views import View, tokens, whole

LEAST = 64
"""The fewest sampled latents."""
REPEATS = 8
"""Sets of the data's latents that samples are compared with. With a single set a multiple varies by a fifth from set to
set. What remains is the chance in the samples themselves."""
KEPT = 2250
"""Sampled latents that an evaluation chooses from, whatever the batch size was: nine batches of the default size, so
that earlier results at that size stay comparable."""
UNEVEN = 1.2
"""Up to this ratio the samples of two classes count as equally many: 12 and 11 do, 3 and 2 do not."""
NUMBERS = 2**28
"""The most numbers of the data's latents that are read, a GiB, unless two sets need more."""


def learned(folder: Path, most: int, read: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """At most so many of the latents [n, C, H, W] that generators learn of a stage `latents` in that folder, as a
    `LatentSet` gives them, evenly spaced, and their labels [n]. Where mirror images are stored, half are theirs: beside
    plain ones alone a perfect generator would be told apart. read: so many plain ones, where they are at hand."""
    mirrored = folder / MIRRORED
    if read is not None and not mirrored.exists():
        return read
    plain = LatentSet(folder / "latents")
    latents = MirroredSet(plain, LatentSet(mirrored)) if mirrored.exists() else plain
    return latents.__getitems__(spaced(latents.labels, most))


def in_shares(labels: Tensor, of_data: Tensor, drawn: bool = False) -> Tensor:
    """int64, ascending: indices of some samples with these labels, so that classes have the shares that they have among
    the data's labels; of all samples where both are even. Other shares would look like an error of the generator.
    drawn: each label was drawn with equal probabilities. Then counts vary by chance, as in the data's sets, and uneven
    ones are not corrected for."""
    if not len(labels):
        return labels
    there = labels.bincount()
    shares = of_data.bincount(minlength=len(there))[: len(there)] * (there > 0)
    # uneven where samples are few and classes many: some classes have one sample more
    if not drawn and there.max() > UNEVEN * there[there > 0].min():
        shares = shares / there.clamp_min(1)
    chance = torch.rand(len(labels), generator=torch.Generator().manual_seed(0))
    return (chance < (shares / shares.max())[labels]).nonzero()[:, 0]


def modelled(sampled: Tensor, data: Tensor, seed: int, count: int = LATENTS) -> dict[str, float]:
    """Figures of sampled latents [n, C, H, W] compared with the data's [m, C, H, W], both normalised, in any order,
    with equal shares of classes (see `in_shares`). The smallest of n, `count` and 2 m / 5 of each are compared;
    multiples of chance grow with that number. Empty where it is below `LEAST`."""
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
    """The sliced distance from z to sets of the data over that between sets, both root mean squares over the sets."""
    found = [distances(view, z, a, b, rest, seed + i) for i, (a, b) in enumerate(pairwise(sets))]
    here, there = (sum(float(x) ** 2 for x in side) for side in zip(*found, strict=True))
    return math.sqrt(here / max(there, 1e-24))


def kept_latents(folder: Path) -> tuple[Tensor, Tensor]:
    """The first KEPT latents [n, C, H, W] in a folder of samples, and their labels [n]; n is 0 for samples of a version
    that stored no latents."""
    parts, labels = list[Tensor](), [torch.empty(0, dtype=torch.int64)]
    for path in sorted(folder.glob("samples-*.safetensors")):
        with safe_open(path, "pt") as file:
            if "latents" not in file.keys():  # noqa: SIM118, which no mapping is
                break
            parts.append(file.get_tensor("latents"))
            labels.append(file.get_tensor("labels"))
    return torch.cat(parts)[:KEPT] if parts else torch.empty(0), torch.cat(labels)[:KEPT]
