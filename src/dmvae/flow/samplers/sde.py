"""The stochastic sampler: Euler-Maruyama of dz = (v + w * score) dt + sqrt(2 w) dB.

It has the ODE's marginals for every w(t) >= 0, of which DIFFUSIONS has those of SiT (arXiv 2401.08740) by their names
there. SiT's "linear" is "sigma" on this path.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import expand, score
from dmvae.flow.samplers import Sampler, Sampling, at, time_grid
from dmvae.registry import register

DIFFUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigma": lambda t: 1 - t,
    "constant": torch.ones_like,
    "sbdm": lambda t: torch.where(t > 0, (1 - t) / t, 0.0),
    "decreasing": lambda t: 0.25 * (1 + torch.cos(math.pi * t)) ** 2,
    "increasing_decreasing": lambda t: torch.sin(math.pi * t) ** 2,
}
"""w(t). That of "sbdm" is infinite at t = 0, where it is left out: the first step follows the ODE."""


def sde_drift(velocity: Tensor, z_t: Tensor, t: Tensor, diffusion: str = "sigma") -> tuple[Tensor, Tensor]:
    """(drift v + w * score, w) of the SDE at times t [b] < 1; w shaped to broadcast."""
    w = DIFFUSIONS[diffusion](expand(t, z_t))
    return velocity + w * score(z_t=z_t, velocity=velocity, t=t), w


@register("sde")
class EulerMaruyama(Sampler):
    """Euler-Maruyama steps to time 1 - last_step, then one step of that size without noise, because the score diverges
    at t = 1: along the drift ("mean"), or along the velocity alone ("euler"), which ends at the denoised estimate.
    SiT's last step "Tweedie" is "euler" on this path."""

    ignores = ("atol", "rtol")

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
            drift, w = sde_drift(velocity(z_t, t, labels), z_t, t, settings.diffusion)
            z_t = z_t + (t1 - t0) * drift + (2 * w * (t1 - t0)).sqrt() * normal()
            yield z_t
        if settings.last_step > 0:
            t = at(grid[-1], z_t)
            v = velocity(z_t, t, labels)
            drift = v if settings.last_step_kind == "euler" else sde_drift(v, z_t, t, settings.diffusion)[0]
            yield z_t + settings.last_step * drift
