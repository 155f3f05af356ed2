"""Distribution matching by the difference of two denoisers (DMVAE; Yin et al., arXiv 2311.18828)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity, guided
from dmvae.flow.path import denoise, interpolate
from dmvae.matching import Context, Log, Matching, Student
from dmvae.ranges import Guidance, Share
from dmvae.registry import register

BINS = 4


@register("dmd")
@dataclass(frozen=True, kw_only=True)
class DMD(Matching):
    """The paper's objective: it descends KL(latents || reference), the reverse KL divergence."""

    guidance: Guidance = 5.0
    """Guidance scale w of teacher and student alike; 1 turns guidance off."""
    time_range: tuple[Share, Share] = (0.02, 0.98)
    """Times are uniform in this range (0 is noise, 1 is data)."""
    time_range_end: tuple[Share, Share] | None = None
    """Where given, the range moves linearly from `time_range` to this over the stage."""

    def __post_init__(self) -> None:
        for low, high in filter(None, (self.time_range, self.time_range_end)):
            if low >= high:
                raise ValueError(f"time range: its first time has to be before its second, got {[low, high]}")

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Student | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """loss = mean (z - stop_grad(z - g))^2 / 2, with g of `gradient`: its gradient at z is g / numel(z)."""
        if teacher is None or student is None:
            raise ValueError("dmd compares two velocities: give it a teacher and a student")
        context = context or Context.default(z, student, teacher)
        t = self._times(len(z), context)
        noise = context.rng.normal(*z.shape)
        with torch.no_grad():
            g, gap = gradient(z.detach(), noise, t, labels, teacher, student, self.guidance, context.null_label)
        loss = 0.5 * (z - (z.detach() - g)).square().mean()
        return loss, {f"gap/t{(i + 0.5) / BINS:.2f}": value for i, value in _binned(gap, t)}

    def _times(self, n: int, context: Context) -> Tensor:
        low, high = self.time_range
        if self.time_range_end is not None:
            p = context.progress
            low, high = ((1 - p) * a + p * b for a, b in zip((low, high), self.time_range_end, strict=True))
        return low + (high - low) * context.rng.uniform(n)


def gradient(
    z: Tensor,
    noise: Tensor,
    t: Tensor,
    labels: Tensor,
    teacher: Velocity,
    student: Velocity,
    guidance: float,
    null: int,
) -> tuple[Tensor, Tensor]:
    """g = (z_hat_student - z_hat_teacher) / mean |z - z_hat_teacher|, [n, C, H, W], the mean over C, H, W;
    and the squared gap between the two estimates, a mean per sample [n]."""
    z_t = interpolate(noise=noise, z=z, t=t)
    hat_teacher = denoise(z_t=z_t, velocity=guided(teacher, guidance, null)(z_t, t, labels).float(), t=t)
    hat_student = denoise(z_t=z_t, velocity=guided(student, guidance, null)(z_t, t, labels).float(), t=t)
    difference = hat_student - hat_teacher
    scale = (z - hat_teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    return difference / scale.clamp_min(1e-8), difference.square().mean(dim=(1, 2, 3))


def _binned(values: Tensor, t: Tensor) -> list[tuple[int, Tensor]]:
    """(bin, [sum, count] of the values whose time falls in it) for bins of equal width over [0, 1]."""
    index = (t * BINS).long().clamp_max(BINS - 1)
    sums = torch.zeros(BINS, device=t.device).index_add_(0, index, values)
    counts = torch.zeros(BINS, device=t.device).index_add_(0, index, torch.ones_like(values))
    return list(enumerate(torch.stack([sums, counts], dim=1)))
