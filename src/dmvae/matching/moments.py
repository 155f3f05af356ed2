"""Moment matching: mean and covariance only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.registry import register
from dmvae.transport.moments import FEWEST, moment_matching


@register("moments")
@dataclass(frozen=True, kw_only=True)
class Moments(BetweenSamples):
    """The squared differences of the means m and of the covariances S, the latter estimated without bias, divided by d.

    Gradient at z_i of n: 2 (m_z - m_y) / (n d) + 4 (k (S_z - tr S_z / (n - 1)) - S_y) (z_i - m_z) / ((n - 1) d), where
    k = (n - 1)^2 / ((n - 2) (n + 1)).
    """

    least: ClassVar[int] = FEWEST

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return moment_matching(a, b)
