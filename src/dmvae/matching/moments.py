"""Moment matching: of mean and covariance only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.registry import register
from dmvae.transport.moments import moment_matching


@register("moments")
@dataclass(frozen=True, kw_only=True)
class Moments(BetweenSamples):
    """The squared differences of the means m and of the covariances S, divided by the dimension d.

    Gradient at z_i of n: 2 (m_z - m_y) / (n d) + 4 (S_z - S_y) (z_i - m_z) / ((n - 1) d).
    """

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return moment_matching(a, b)
