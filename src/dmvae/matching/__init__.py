"""Matching objectives: one file each. An objective says how latents move towards the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.registry import Registered
from dmvae.training.random import Random


class Matching(Protocol):
    """What `MatchingConfig.build` returns."""

    def loss(
        self, z: Tensor, labels: Tensor, teacher: Velocity, student: Velocity, generator: Random
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar whose gradient with respect to the latents z [n, C, H, W] (normalised per channel)
        moves them, and figures to log. `generator.progress` runs from 0 to 1 over the stage."""
        ...


@dataclass(frozen=True, kw_only=True)
class MatchingConfig(Registered):
    """An objective has no field in common with the others."""

    def build(self, num_classes: int) -> Matching:
        """The objective; the label `num_classes` means "no label"."""
        raise NotImplementedError
