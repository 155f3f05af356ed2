"""The stochastic sampler: Euler-Maruyama of dz = (v + w * score) dt + sqrt(2 w) dB with w(t) = 1 - t.

It has the ODE's marginals (SiT, arXiv 2401.08740, "sigma" diffusion).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import expand, score
from dmvae.flow.samplers import Sampler, Sampling, at, time_grid
from dmvae.registry import register


def sde_drift(velocity: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(drift v + w * score, w) of the SDE at times t [b] < 1; w = 1 - t, shaped to broadcast."""
    w = 1 - expand(t, z_t)
    return velocity + w * score(z_t=z_t, velocity=velocity, t=t), w


@register("sde")
class EulerMaruyama(Sampler):
    """Euler-Maruyama steps to time 1 - last_step, then one step of that size along the drift without noise (the "mean"
    step), because the score diverges at t = 1."""

    def trajectory(
        self,
        velocity: Velocity,
        noise: Tensor,
        labels: Tensor,
        settings: Sampling,
        normal: Callable[[], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        if normal is None:
            raise ValueError(
                "method 'sde' draws fresh noise in every step: give normal=, a function that returns some like the "
                "first, such as lambda: torch.randn_like(noise); or another method (euler, heun)"
            )
        grid = (time_grid(settings.steps, settings.time_shift) * (1 - settings.last_step)).tolist()
        z_t = noise
        for t0, t1 in itertools.pairwise(grid):
            t = at(t0, z_t)
            drift, w = sde_drift(velocity(z_t, t, labels), z_t, t)
            z_t = z_t + (t1 - t0) * drift + (2 * w * (t1 - t0)).sqrt() * normal()
            yield z_t
        if settings.last_step > 0:
            t = at(grid[-1], z_t)
            drift, _ = sde_drift(velocity(z_t, t, labels), z_t, t)
            yield z_t + settings.last_step * drift
