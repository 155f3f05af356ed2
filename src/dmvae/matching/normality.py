"""A test of normality along random slices, for a Gaussian reference: it compares with no samples of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmvae.matching.between import BetweenSamples
from dmvae.ranges import Scale, Width
from dmvae.references import ReferenceConfig
from dmvae.references.gaussian import GaussianReference
from dmvae.registry import register
from dmvae.transport.normality import narrowed, normality

FEWEST = 8
"""The fewest latents. On these the statistic is least at 0.87 times the reference's standard deviation (`narrowed`)."""


@register("normality")
@dataclass(frozen=True, kw_only=True)
class Normality(BetweenSamples):
    """The Epps-Pulley statistic of random projections (SIGReg, arXiv 2511.08544), only for the reference `gaussian`.
    It compares with no samples: `samples` changes nothing but the random numbers that follow.

    Gradient at z_i of n: (2 / (n std)) mean_u u integral of t (b cos(t x_i) - a sin(t x_i)) exp(-t^2 / 2) dt, where
    x = u . z / std, and a + i b = mean_k exp(i t x_k) - exp(-t^2 / 2) is the error of the characteristic function at t.
    """

    only_for: ClassVar[tuple[str, ...]] = ("gaussian",)
    repeats: ClassVar[bool] = True

    slices: Width = 256
    """Random directions per view and update."""
    std: Scale = 1.0
    """Standard deviation of the reference, as `reference.distribution.std` says it."""

    def problems(self, batch_size: int, num_classes: int, reference: ReferenceConfig) -> Iterator[str]:
        found = list(super().problems(batch_size, num_classes, reference))
        yield from found
        if isinstance(reference, GaussianReference) and reference.std != self.std:
            yield (
                f"matching.objective.std: {self.std:g}, and reference.distribution.std is {reference.std:g}, to which "
                "latents would not go; give both the same"
            )
        together = batch_size + self.queue
        if "whole" in self.views and together < FEWEST and not found:
            yield (
                f"matching.batch_size: {batch_size}; a test of normality on {together} latents is least for latents of "
                f"{narrowed(together):.2f} times the reference's deviation, and of {narrowed(FEWEST):.2f} on {FEWEST}: "
                "give at least those, or a matching.objective.queue"
            )

    def distance(self, a: Tensor, b: Tensor, rng: torch.Generator, progress: float) -> Tensor:
        return normality(a, rng, self.slices, self.std)
