"""Confidence intervals of means, by bootstrap."""

from __future__ import annotations

import torch
from torch import Tensor

DRAWS, LEVEL, SEED = 1000, 0.95, 0


def interval(values: Tensor) -> tuple[float, float]:
    """The interval that holds the mean of `values` [n] with probability LEVEL: quantiles of the means of DRAWS samples
    with replacement, drawn with a fixed seed.

    Only for figures that are means over images. A Frechet or kernel distance is none: a resampled set has duplicates,
    which bias its distance upwards by more than its spread, so those get no interval.
    """
    generator = torch.Generator().manual_seed(SEED)
    x = values.double().cpu()
    at_once = max(1, 2**18 // len(x))
    counts = [min(at_once, DRAWS - done) for done in range(0, DRAWS, at_once)]
    means = torch.cat([x[torch.randint(len(x), (count, len(x)), generator=generator)].mean(1) for count in counts])
    low, high = torch.quantile(means, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return low, high
