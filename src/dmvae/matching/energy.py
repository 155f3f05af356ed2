"""Energy distance: latents are attracted by samples of the reference and repelled by each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.registry import register
from dmvae.transport.energy import energy_distance


@register("energy")
@dataclass(frozen=True, kw_only=True)
class Energy(BetweenSamples):
    """2 E|z - y| - E|z - z'| - E|y - y'|, which is 0 for equal distributions only.

    Gradient at z_i of n: (2 / n) (mean_j e(z_i - y_j) - mean_(k != i) e(z_i - z_k)), e(v) = v / |v|.
    """

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return energy_distance(a, b)
