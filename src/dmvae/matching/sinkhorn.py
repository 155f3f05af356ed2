"""Entropic optimal transport: a balanced assignment of latents to samples of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae import config as configs
from dmvae.matching.between import BetweenSamples
from dmvae.registry import register
from dmvae.transport.sinkhorn import sinkhorn_divergence


@register("sinkhorn")
@dataclass(frozen=True, kw_only=True)
class Sinkhorn(BetweenSamples):
    """The debiased Sinkhorn divergence (arXiv 1810.08278)."""

    vectors: int = 512
    """At most so many vectors of a view are compared, drawn at random; the time grows with their square."""
    eps: float = 0.05
    """Entropic regularisation, as a share of the mean squared distance; smaller is closer to the exact assignment."""
    iterations: int = 50
    """Iterations of Sinkhorn's algorithm per update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        configs.require_positive(self, "iterations")
        if not 0 < self.eps < 100:
            raise ValueError(f"eps: {self.eps:g}; give a share above 0, such as 0.05")

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return sinkhorn_divergence(a, b, self.eps, self.iterations)
