"""Transport: latents move down the gradient of the sliced Wasserstein distance to samples of the reference.

It works from any start, near or far. Slices of one kind of vector miss fine structure; so three views are compared:
whole latents, tokens, and pairs of neighbouring tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.ranges import Width
from dmvae.references import ReferenceConfig
from dmvae.registry import register
from dmvae.runtime.words import counted
from dmvae.transport.sliced import MIXED, Along, sliced_wasserstein


@register("transport")
@dataclass(frozen=True, kw_only=True)
class Transport(BetweenSamples):
    """mean over directions u of W2^2(u . z, u . y) (sliced Wasserstein distance).

    Gradient at z_i of n: (2 / n) mean_u (u . z_i - q_i(u)) u. With i the rank of z_i along u, q_i(u) is the mean of the
    quantiles of u . y from (i - 1) / n to i / n: the place of z_i in the reference.
    """

    repeats: ClassVar[bool] = True

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
        found = list(super().problems(batch_size, num_classes, reference))
        yield from found
        # Directions between latents and samples are drawn from an eighth of each, which are not compared; class by
        # class, of those of each class.
        sets = num_classes if self.labels else 1
        gaps, wanted = -(-(batch_size // sets) // 8) * -(-(self.samples // sets) // 8), self.slices // len(self.along)
        if "gap" in self.along and "whole" in self.views and wanted > gaps and not found:
            where = f" in each of {sets} classes" if self.labels else ""
            yield (
                f"matching.objective.slices: {self.slices}, of which {wanted} lie along gaps between a latent and a "
                f"sample; batches of {batch_size} and {self.samples} samples have {counted(gaps, 'such gap')}{where}: "
                f"raise matching.batch_size, set slices to at most {gaps * len(self.along)}, or leave gap out of along"
            )

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return sliced_wasserstein(a, b, rng, self.slices, self.along)
