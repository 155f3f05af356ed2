"""An objective of your own that remembers: DMD whose times follow the measured gap, whose pull is clipped, or waits.

It comes no nearer to a far reference than plain DMD (docs/results/arriving.md, "References that are reached"), so it
stays an example: of an objective that extends another, and that keeps something from step to step.

    dmvae run examples/dmd_following.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from dmvae.flow.guidance import Velocity
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import LAG, Context, Log, Student
from dmvae.matching.dmd import DMD, gradient
from dmvae.matching.velocities import binned
from dmvae.ranges import Range
from dmvae.registry import register
from dmvae.runtime import distributed

BINS, DECAY = 8, 0.95
SMOOTH = 0.8
"""Decay of the mean of the lag, over some ten steps of the student."""


@register("dmd_following")
@dataclass(frozen=True, kw_only=True)
class DMDFollowing(DMD):
    """DMD at times drawn as often as the gap between teacher and student is wide there (by its root mean square)."""

    follow: bool = True
    """Draw times so; false draws them evenly, as DMD does."""
    clip: Annotated[float, Range(1, 1e6)] | None = 1.5
    """A sample's gradient is at most so many times as long as the median sample's; null: as long as it is."""
    wait: Annotated[float, Range(0.1, 10)] | None = None
    """Do not pull while the student's lag is above this, so that it takes as many steps for a pull as it needs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence != "reverse_kl":
            raise ValueError(f"divergence: {self.divergence} is not for this example; leave it out")

    def new_student(
        self, latent_shape: tuple[int, int, int], num_classes: int, teacher: object, model: FlowModelConfig
    ) -> nn.Module | None:
        """The flow, with the mean gap of each bin of times as a buffer: what checkpoints hold survives a kill."""
        student = super().new_student(latent_shape, num_classes, teacher, model)
        assert student is not None
        student.register_buffer("gaps", torch.ones(BINS))
        student.register_buffer("lag", torch.ones(()))
        return student

    def student_loss(
        self, student: Student, z: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Log]:
        loss, log = super().student_loss(student, z, labels, context)
        assert isinstance(student, nn.Module)
        student.lag.lerp_(distributed.average(log[LAG]), 1 - SMOOTH)
        return loss, log

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Student | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """mean (z - stop_grad(z - c g))^2 / 2, c the factor that clips g."""
        _, context, t, noise = self.asked(z, labels, teacher, student, context)
        assert teacher is not None
        assert isinstance(student, nn.Module)
        gaps: Tensor = student.gaps
        low, high = self.time_range
        if self.follow:
            share = gaps.sqrt().cumsum(0)
            bins = torch.searchsorted(share / share[-1], context.rng.uniform(len(z))).clamp_max(BINS - 1)
            t = low + (high - low) * (bins + context.rng.uniform(len(z))) / BINS
        with torch.no_grad():
            g, gap = gradient(z.detach(), noise, t, labels, teacher, student, self.guidance, context.null_label)
            place = (BINS * (t - low) / (high - low)).long().clamp(0, BINS - 1)
            at = nn.functional.one_hot(place, BINS).float()
            total, count = distributed.average(torch.stack([gap.float() @ at, at.sum(0)]))  # of all ranks, as below
            gaps.copy_(torch.where(count > 0, DECAY * gaps + (1 - DECAY) * total / count, gaps))
            length = g.flatten(1).norm(dim=1)
            longest = float("inf") if self.clip is None else self.clip * distributed.gather(length).median()
            factor = (longest / length.clamp_min(1e-12)).clamp_max(1.0)
            g = factor.view(-1, 1, 1, 1) * g
            waits = student.lag > (float("inf") if self.wait is None else self.wait)
            g = torch.where(waits, 0.0, g)
        log = binned(gap, t) | {"matching/clipped": (factor < 1).float().mean(), "matching/waits": waits.float()}
        return 0.5 * (z - (z.detach() - g)).square().mean(), log
