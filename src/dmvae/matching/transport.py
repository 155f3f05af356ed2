"""Transport: latents move down the gradient of the sliced Wasserstein distance to samples of the reference.

It works from any start, near or far. Slices of one kind of vector miss fine structure; so three views are compared:
whole latents, tokens, and pairs of neighbouring tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.ranges import Width
from dmvae.references import ReferenceConfig
from dmvae.registry import register
from dmvae.transport.sliced import MIXED, Along, sliced_wasserstein


@register("transport")
@dataclass(frozen=True, kw_only=True)
class Transport(BetweenSamples):
    """mean over directions u of W2^2(u . z, u . y) (sliced Wasserstein distance).

    Gradient at z_i of n: (2 / n) mean_u (u . z_i - q_i(u)) u, where q_i(u) is the mean of the quantiles of u . y that
    the rank of z_i along u stands for: its place in the reference.
    """

    slices: Width = 48
    """Directions per view and update."""
    along: tuple[Along, ...] = MIXED
    """Kinds of directions, in equal shares: "random", "reference" (between two of its samples), "gap" (from a latent to
    a sample), "principal"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slices < len(self.along) or not self.along:
            raise ValueError(f"slices: {self.slices} for {len(self.along)} kinds of directions; give each one")

    def problems(self, batch_size: int, num_classes: int, reference: ReferenceConfig) -> Iterator[str]:
        yield from super().problems(batch_size, num_classes, reference)
        # Directions between latents and samples are drawn from an eighth of each, which are not compared.
        pairs, wanted = -(-batch_size // 8) * -(-self.samples // 8), self.slices // len(self.along)
        if "gap" in self.along and "whole" in self.views and wanted > pairs:
            yield (
                f"matching.objective.slices: {self.slices}, of which {wanted} lie along gaps between a latent and a "
                f"sample; batches of {batch_size} and {self.samples} samples have {pairs} such gaps: raise "
                f"matching.batch_size, or set slices to at most {pairs * len(self.along)}"
            )

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return sliced_wasserstein(a, b, rng, self.slices, self.along)
