"""A test of normality along random slices, for a Gaussian reference: it draws no samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmvae import config as configs
from dmvae.matching.between import BetweenSamples
from dmvae.registry import register
from dmvae.transport.normality import normality


@register("normality")
@dataclass(frozen=True, kw_only=True)
class Normality(BetweenSamples):
    """The Epps-Pulley statistic of random projections (SIGReg, arXiv 2511.08544), only for the reference
    `gaussian`."""

    only_for: ClassVar[tuple[str, ...]] = ("gaussian",)

    slices: int = 256
    """Random directions per view and update."""
    std: float = 1.0
    """Standard deviation of the reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        configs.require_positive(self, "slices")
        if self.std <= 0:
            raise ValueError(f"std: {self.std:g}; give a number above 0")

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return normality(a, rng, self.slices, self.std)
