"""Hand-over: one objective brings the latents near, another refines them where supports meet.

From far away the paper's objective shrinks latents before it moves them. Transport does not, but sees no fine
structure. So the measured distance decides in every update of the tokenizer; if the refinement leads away, the other
takes over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from dmvae.flow.guidance import Velocity
from dmvae.generators.flow import TransformerConfig
from dmvae.matching import Context, Log, Matching, Student
from dmvae.matching.dmd import DMD
from dmvae.matching.transport import Transport
from dmvae.ranges import Range
from dmvae.references import ReferenceConfig
from dmvae.registry import register


@register("hand_over")
@dataclass(frozen=True, kw_only=True)
class HandOver(Matching):
    """`far`'s loss while the distance is above `below` or not measured yet, else `near`'s.

    The distance is `context.distance`: the largest sliced distance of recent latents, a multiple of chance. `near`'s
    student follows the latents from the first step, so that it knows them when its turn comes. Logged:
    "matching/refines", 1 in updates by `near`, else 0.
    """

    needs_distance: ClassVar[bool] = True

    far: Matching = field(default_factory=Transport)
    """The objective that brings latents near, one without a student."""
    near: Matching = field(default_factory=lambda: DMD(guidance=1.0))
    """The objective that refines them."""
    below: Annotated[float, Range(1, 1e6)] = 1.5
    """The distance at which `near` takes over, a multiple of chance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.far.has_student:
            raise ValueError(f"far: {self.far.type!r} trains a student; give one without, such as transport")
        if self.far.needs_distance or self.near.needs_distance:
            raise ValueError("far, near: give objectives that move latents themselves, no hand_over in a hand_over")
        needs = {
            "has_student": self.near.has_student,
            "needs_teacher": self.far.needs_teacher or self.near.needs_teacher,
            "needs_reference": self.far.needs_reference or self.near.needs_reference,
            "differentiates": (self.far.needs_teacher and self.far.differentiates) or self.near.differentiates,
            "only_for": self.far.only_for or self.near.only_for,
        }
        for name, value in needs.items():  # class variables of other objectives; here they depend on the fields
            object.__setattr__(self, name, value)

    @property
    def needs_recent(self) -> int:
        return max(self.far.needs_recent, self.near.needs_recent)

    def parts(self) -> dict[str, Matching]:
        return {".far": self.far, ".near": self.near}

    def problems(self, batch_size: int, num_classes: int, reference: ReferenceConfig) -> Iterator[str]:
        for name, part in self.parts().items():
            for problem in part.problems(batch_size, num_classes, reference):
                yield problem.replace("matching.objective.", f"matching.objective{name}.")

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Student | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """`far`'s loss where context.distance > `below`, else `near`'s. Raises ValueError where there is no
        distance."""
        if not isinstance(context, Context) or context.distance is None:
            raise ValueError(
                "hand_over goes by the measured distance: give context=Context(..., distance=MULTIPLE_OF_CHANCE), such "
                "as the largest sliced one of dmvae.transport.arrival.multiples(z, y, rng); float('inf') at first"
            )
        refines = context.distance <= self.below
        part = self.near if refines else self.far
        loss, log = part.loss(z, labels, teacher, student, context)
        return loss, log | {"matching/refines": torch.full((), float(refines), device=z.device)}

    def new_student(
        self, latent_shape: tuple[int, int, int], num_classes: int, teacher: object, model: TransformerConfig
    ) -> nn.Module | None:
        return self.near.new_student(latent_shape, num_classes, teacher, model)

    def student_loss(
        self, student: Student, z: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Log]:
        return self.near.student_loss(student, z, labels, context)
