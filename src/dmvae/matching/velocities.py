"""What the objectives have in common that ask teacher or student for velocities: times, guidance, gradients at z alone.

In the docstrings of these objectives: z_t = (1 - t) noise + t z; v_T, v_S the velocities of teacher and student at z_t,
and J_T, J_S [d, d] their Jacobians dv / dz_t; numel the number of elements of z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity, guided
from dmvae.matching import Context, Log, Matching, Student, known_labels, require_gradient
from dmvae.ranges import Guidance, Share
from dmvae.runtime.precision import full_precision

BINS = 4
"""Bins of times in [0, 1], for figures by time."""


@dataclass(frozen=True, kw_only=True)
class ByVelocities(Matching):
    """Base of the objectives that noise the latents and ask what teacher or student say there."""

    guidance: Guidance = 1.0
    """Guidance scale w of teacher and student alike; 1 turns guidance off."""
    time_range: tuple[Share, Share] = (0.02, 0.98)
    """Times are uniform in this range (0 is noise, 1 is data)."""
    time_range_end: tuple[Share, Share] | None = None
    """Where given, the range moves linearly from `time_range` to this over the stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """(`value` with its gradient at z alone, what it logs). Raises ValueError as `asked`."""
        velocities, _, t, noise = self.asked(z, labels, teacher, student, context)
        log = Log()
        return at_latents(lambda at: self.value(at, labels, velocities, t, noise, log), z), log

    def value(
        self, z: Tensor, labels: Tensor, velocities: dict[str, Velocity], t: Tensor, noise: Tensor, log: Log
    ) -> Tensor:
        """The scalar that latents z descend, from guided velocities at times t [n], with noise like z. Writes figures
        into `log`. Not called where a member defines `loss` itself."""
        raise NotImplementedError

    def asked(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None,
        student: Student | None,
        context: Context | None,
    ) -> tuple[dict[str, Velocity], Context, Tensor, Tensor]:
        """({"teacher": guided velocity, "student": ...}, only those that the objective needs; the context; times [n];
        noise [n, C, H, W]). Raises ValueError where a network that it needs is missing, and as `Context.given` and
        `require_gradient`."""
        needed: dict[str, Velocity | None] = {"teacher": teacher} if self.needs_teacher else {}
        needed |= {"student": student} if self.has_student else {}
        given = {name: network for name, network in needed.items() if network is not None}
        if missing := [name for name in needed if name not in given]:
            raise ValueError(f"{self.type} asks for velocities: give it a {' and a '.join(missing)}")
        for name, network in given.items():
            if not callable(network):
                raise ValueError(
                    f"{name}: a {type(network).__name__} cannot be called; give velocity(z_t, t, labels), which a "
                    "reference of closed form has as `.velocity`"
                )
        context = Context.given(context, z, labels, student, teacher)
        require_gradient(z)
        t = self._times(len(z), context)
        noise = context.rng.normal(*z.shape)
        null = context.null_label
        asked = {name: _of_classes(guided(network, self.guidance, null), null) for name, network in given.items()}
        return asked, context, t, noise

    def _times(self, n: int, context: Context) -> Tensor:
        low, high = self.time_range
        if self.time_range_end is not None:
            p = context.progress
            low, high = ((1 - p) * a + p * b for a, b in zip((low, high), self.time_range_end, strict=True))
        return low + (high - low) * context.rng.uniform(n)


def _of_classes(velocity: Velocity, null_label: int) -> Velocity:
    def asked(z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with known_labels(labels, null_label):
            return velocity(z_t, t, labels)

    return asked


def at_latents(value: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """value(z), a scalar, whose gradient reaches z and not the networks that `value` calls."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))  # in float16 the gradient may underflow
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        found = value(at)
        # Under autocast to float16 a network's own gradients underflow in a mean over many elements, before a trainer's
        # GradScaler sees any. A power of two changes no digit of the others.
        scale = 2.0 ** z.numel().bit_length()
        with full_precision(z):  # autocast would cast the products of this backward pass too
            (pull,) = torch.autograd.grad(scale * found, at)
    return found.detach() + (pull / scale * (z - z.detach())).sum()


def binned(values: Tensor, t: Tensor) -> dict[str, Tensor]:
    """ "gap/tMIDDLE" -> [sum, count] of the values [n] whose time in t [n] falls in that of `BINS` bins over [0, 1]."""
    index = (t * BINS).long().clamp_max(BINS - 1)
    sums = torch.zeros(BINS, device=t.device).index_add_(0, index, values.float())
    counts = torch.zeros(BINS, device=t.device).index_add_(0, index, torch.ones_like(t))
    return {f"gap/t{(i + 0.5) / BINS:.2f}": pair for i, pair in enumerate(torch.stack([sums, counts], dim=1))}
