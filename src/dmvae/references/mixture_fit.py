"""Gaussian mixtures fitted to samples by expectation maximisation.

Shapes: n samples of D components, K mixture components.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 50  # at most
FLOOR = 1e-3  # of a variance, in the unit scale of normalised latents: a component is not a point


def fit_mixture(x: Tensor, components: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(means [K, D], variances [K, D], weights [K], float64) of the mixture with diagonal covariances that expectation
    maximisation reaches on x [n, D] from k-means++ centres. K is `components`, or n if that is less."""
    x = x.double()
    components = min(components, len(x))
    generator = torch.Generator().manual_seed(seed)
    means = _plus_plus(x, components, generator)
    share = torch.nn.functional.one_hot(torch.cdist(x, means).argmin(1), components).double()
    total = x.var(0, correction=0).clamp_min(FLOOR)
    for _ in range(ITERATIONS if components > 1 else 1):
        means, variances, weights = _maximise(x, share, total)
        new = _share(x, means, variances, weights)
        if (new - share).abs().max() < 1e-6:
            break
        share = new
    return means, variances, weights


def _plus_plus(x: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Samples as centres [K, D], each drawn with probability proportional to its squared distance to the nearest of
    those before (k-means++, Arthur and Vassilvitskii 2007)."""
    centres = [x[torch.randint(len(x), (), generator=generator)]]
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype)
    while len(centres) < components:
        nearest = torch.minimum(nearest, (x - centres[-1]).square().sum(1))
        if not nearest.any():  # fewer different samples than centres
            nearest = torch.ones_like(nearest)
        centres.append(x[torch.multinomial(nearest, 1, generator=generator)[0]])
    return torch.stack(centres)


def _maximise(x: Tensor, share: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters of highest likelihood, given each component's share [n, K] of each sample. The whole set's
    variance counts as one more sample of each component, so that few samples do not make a point."""
    count = share.sum(0).clamp_min(1e-9)[:, None]
    means = share.T @ x / count
    second = share.T @ x.square() / count
    variances = ((second - means.square()).clamp_min(0) * count + total) / (count + 1)
    return means, variances.clamp_min(FLOOR), count[:, 0] / len(x)


def _share(x: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """p(k | x), [n, K]."""
    inverse = 1 / variances
    squares = x.square() @ inverse.T - 2 * x @ (means * inverse).T + (means.square() * inverse).sum(1)
    return (weights.log() - 0.5 * (squares + variances.log().sum(1))).softmax(1)
