"""Kernel drift: the difference of two mean shifts, whose bandwidth narrows over the training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.ranges import Scale
from dmvae.registry import register
from dmvae.transport.drift import kernel_drift


@register("drift")
@dataclass(frozen=True, kw_only=True)
class Drift(BetweenSamples):
    """Latents move by the mean shift towards samples of the reference, less the mean shift towards other latents.

    Gradient at z_i of n: -V(z_i) / n, V(z_i) = mean of y weighted by k(z_i, y) - mean of the other z weighted by
    k(z_i, z), k(a, b) = exp(-|a - b| / h), h the bandwidth times the mean distance between z and y.
    """

    bandwidths: tuple[Scale, Scale] = (0.5, 0.05)
    """Bandwidth at the start and at the end, relative to the mean distance between latents and samples; it changes
    geometrically between them."""

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return kernel_drift(a, b, progress, self.bandwidths)
