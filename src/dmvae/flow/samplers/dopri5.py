"""The adaptive sampler of the ODE dz = v dt: the pair of Runge-Kutta methods of orders 5 and 4 of Dormand and Prince
(1980), by default the ODE solver in SiT's code, on which LightningDiT's and RAE's are built.

Each image has its own time, step size and error, so that no image depends on the others in its batch. torchdiffeq, by
which that code solves the ODE, chooses one step size for all of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import expand
from dmvae.flow.samplers import Sampler, Sampling
from dmvae.registry import register

TABLEAU = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
"""(how far into the step the velocity is asked for next, weights of those asked for so far on the way there). The last
place is the step's end, by order 5: its velocity is the first one of the next step."""
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Weights of the order 5 less those of the order 4."""
FIRST = 0.01
"""The first step that is tried."""
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
"""Share of the step size that would just do, and what a step may be of the one before, at least and at most."""


@register("dopri5")
class DormandPrince(Sampler):
    """Steps as large as keep the error of each image below `atol + rtol |z|`, in the mean square over its values.
    `steps` is the most that are tried; each asks for the velocity six times."""

    ignores = ("time_shift", "last_step", "last_step_kind", "diffusion")

    def trajectory(
        self,
        velocity: Velocity,
        noise: Tensor,
        labels: Tensor,
        settings: Sampling,
        normal: Callable[[], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        z, t = noise, torch.zeros(len(noise), device=noise.device)
        dt, v = torch.full_like(t, FIRST), velocity(noise, t, labels)
        self.evaluations = torch.ones_like(t, dtype=torch.int64)
        for _ in range(settings.steps):
            self.evaluations += len(TABLEAU) * (t < 1)
            end, v_end, error = step(velocity, z, v, t, dt, labels)
            allowed = settings.atol + settings.rtol * torch.maximum(z.abs(), end.abs())
            ratio = (error / allowed).square().flatten(1).mean(1).sqrt()
            taken = ratio <= 1
            z, v = (torch.where(expand(taken, z), new, old) for new, old in ((end, z), (v_end, v)))
            t = torch.where(taken, t + dt, t)
            yield z
            if bool((t >= 1).all()):
                return
            # An image that has arrived takes steps of size 0 until the last one has: the batch keeps its shape.
            dt = torch.minimum(dt * (SAFETY * ratio**-0.2).clamp(SHRINK, GROW), 1 - t)
        if lost := int((~ratio.isfinite()).sum()):
            raise ValueError(
                f"dopri5: the velocity of {lost} of {len(t)} images became NaN or infinite; the network's weights are "
                "damaged, or it needs another precision (float32)"
            )
        raise ValueError(
            f"dopri5: after {settings.steps} steps {int((t < 1).sum())} of {len(t)} images have not arrived, the last "
            f"is at t = {float(t.min()):.3g}; allow more steps, or larger errors (atol, rtol)"
        )


def step(
    velocity: Velocity, z: Tensor, v: Tensor, t: Tensor, dt: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From z [b, C, H, W] with velocity v at times t [b], a step of dt [b]: (state at its end, velocity there, estimate
    of the state's error)."""
    h, slopes, end = expand(dt, z), [v], z
    for place, weights in TABLEAU:
        end = z + h * _mixed(weights, slopes)
        slopes.append(velocity(end, (t + place * dt).clamp(max=1), labels))
    return end, slopes[-1], h * _mixed(ERROR, slopes)


def _mixed(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    parts = (weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight)
    return torch.stack(tuple(parts)).sum(0)
