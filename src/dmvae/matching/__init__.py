"""Matching objectives: one file each. An objective says how latents move towards the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from dmvae.flow.guidance import Velocity
from dmvae.registry import Registered
from dmvae.runtime.random import Random
from dmvae.training.contract import Update

if TYPE_CHECKING:
    from dmvae.references import Reference


class Matching(Protocol):
    """What `MatchingConfig.build` returns."""

    def loss(
        self, z: Tensor, labels: Tensor, teacher: Velocity, student: Velocity, generator: Random
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar whose gradient with respect to the latents z [n, C, H, W] (normalised per channel)
        moves them, and figures to log. `generator.progress` runs from 0 to 1 over the stage."""
        ...


@runtime_checkable
class BringsStudent(Protocol):
    """What an objective has besides where its student is not what it is by default: a flow model that starts as
    the teacher and learns the latents by flow matching."""

    def build_student(self, latent_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """The network in the student's place, for latents (C, H, W); `loss` gets it as `student`."""
        ...

    def student_update(self, student: Any, z: Tensor, labels: Tensor, reference: Reference, rng: Random) -> Update:
        """Its turn, named "student", on detached latents z [n, C, H, W], normalised as the reference's samples
        are. What it remembers from turn to turn must be in the network, so that a run can be resumed."""
        ...


@dataclass(frozen=True, kw_only=True)
class MatchingConfig(Registered):
    """An objective has no field in common with the others."""

    def build(self, num_classes: int) -> Matching:
        """The objective, a `BringsStudent` too where it likes; the label `num_classes` means "no label"."""
        raise NotImplementedError
