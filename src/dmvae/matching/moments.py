"""Moment matching: of mean and covariance only."""

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
    """The squared differences of the means m and of the covariances S, the latter without bias, divided by d.

    Gradient at z_i of n: 2 (m_z - m_y) / (n d) + 4 (r_i - S_y c_i / (n - 1)) / d, where c_i = z_i - m_z and r_i is
    S_z c_i / n without what z_i itself adds to S_z,
    ((n - 1) (n - 2) S_z c_i + tr S_z c_i - n (|c_i|^2 c_i - mean_k |c_k|^2 c_k)) / (n (n - 2) (n - 3)).
    """

    least: ClassVar[int] = FEWEST

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return moment_matching(a, b)
