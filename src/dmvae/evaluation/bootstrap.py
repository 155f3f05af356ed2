"""Confidence intervals of means, by bootstrap."""

from __future__ import annotations

import torch
from torch import Tensor

DRAWS = 1000


def interval(values: Tensor, *, draws: int = DRAWS, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The interval that holds the mean of `values` [n] with probability `level`: quantiles of the means of `draws`
    resamplings with replacement.

    For figures that are means over images. A Frechet or kernel distance is not one: a resampled set holds doubles, and
    its distance is biased upwards by more than its spread, so none is given for those.
    """
    generator = torch.Generator().manual_seed(seed)
    x = values.double().cpu()
    means = torch.stack([x[torch.randint(len(x), (len(x),), generator=generator)].mean() for _ in range(draws)])
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
