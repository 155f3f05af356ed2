"""Entropic optimal transport: a balanced assignment of latents to samples of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.ranges import BatchSize, Range
from dmvae.registry import register
from dmvae.transport.sinkhorn import sinkhorn_divergence


@register("sinkhorn")
@dataclass(frozen=True, kw_only=True)
class Sinkhorn(BetweenSamples):
    """The debiased Sinkhorn divergence (arXiv 1810.08278).

    Gradient at z_i of n: (T_zz(z_i) - T_zy(z_i)) / n, where T_zy(z_i) = n sum_j P_ij y_j is the mean of the samples
    that z_i is assigned by the balanced plan P, and T_zz(z_i) that of the latents in a plan of z to itself, near z_i.

    For views of few dimensions, as tokens of few channels. In many dimensions each latent is by far nearest to itself,
    and the mean of the samples it is assigned is nearer to the centre: latents that already follow the reference
    shrink.
    """

    vectors: BatchSize = 512
    """The most vectors of a view that are compared, drawn at random; the time grows with their square."""
    eps: Annotated[float, Range(0, 100, "()")] = 0.05
    """Entropic regularisation, as a share of the mean cost |z - y|^2 / 2; smaller is closer to the exact assignment."""
    iterations: Annotated[int, Range(1, 10**6)] = 50
    """Iterations of Sinkhorn's algorithm per update."""

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return sinkhorn_divergence(a, b, self.eps, self.iterations)
