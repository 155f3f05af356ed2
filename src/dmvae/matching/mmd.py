"""Maximum mean discrepancy with kernels of several widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.ranges import Scale
from dmvae.registry import register
from dmvae.transport.mmd import mmd


@register("mmd")
@dataclass(frozen=True, kw_only=True)
class MMD(BetweenSamples):
    """The kernel distance of Wasserstein autoencoders (arXiv 1711.01558).

    Gradient at z_i of n: (2 / n) (mean_(k != i) g(z_i - z_k) - mean_j g(z_i - y_j)), with the kernel's gradient
    g(v) = -mean_b 2 v / (b s (1 + |v|^2 / (b s))^2), b the bandwidths and s the mean squared distance between samples.
    """

    repeats: ClassVar[bool] = True

    bandwidths: tuple[Scale, ...] = (0.2, 0.5, 1.0, 2.0, 5.0)
    """b of the kernels 1 / (1 + |v|^2 / (b s)), s the mean squared distance between samples of the reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bandwidths:
            raise ValueError("bandwidths: give at least one")

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return mmd(a, b, self.bandwidths)
