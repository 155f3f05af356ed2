"""Samplers along the path from t = 0 (noise) to t = 1 (data).

ODE: dz = v dt. SDE: dz = (v + w * score) dt + sqrt(2 w) dB with w(t) = 1 - t, which has the same
marginals (SiT, arXiv 2401.08740, "sigma" diffusion).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import expand, score, shift_time

Method = Literal["euler", "midpoint", "heun", "sde"]
METHODS: tuple[Method, ...] = ("euler", "midpoint", "heun", "sde")


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """[steps + 1] times from 0 to 1, uniform and then shifted towards noise; float32 on the CPU.

    They are multiples of 2^-24, so that t, the noise level 1 - t and every step size are exact in float32:
    diffusers' schedulers count by noise level, and take the very same steps.
    """
    return 1 - (1 - shift_time(torch.linspace(0, 1, steps + 1), shift))


def sde_drift(velocity: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(drift v + w * score, w) of the SDE at times t [b] < 1; w = 1 - t, shaped to broadcast."""
    w = 1 - expand(t, z_t)
    return velocity + w * score(z_t, velocity, t), w


def sample(
    velocity: Velocity,
    noise: Tensor,
    labels: Tensor,
    *,
    method: Method = "euler",
    steps: int = 50,
    shift: float = 1.0,
    last_step: float = 0.04,
    normal: Callable[[], Tensor] | None = None,
) -> Tensor:
    """The last of `trajectory`: samples [b, C, H, W] at t = 1."""
    z_t = noise
    for z_t in trajectory(  # noqa: B007
        velocity, noise, labels, method=method, steps=steps, shift=shift, last_step=last_step, normal=normal
    ):
        pass
    return z_t


def trajectory(
    velocity: Velocity,
    noise: Tensor,
    labels: Tensor,
    *,
    method: Method = "euler",
    steps: int = 50,
    shift: float = 1.0,
    last_step: float = 0.04,
    normal: Callable[[], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield the state [b, C, H, W] after every step, from `noise` (t = 0) to data (t = 1).

    Args:
        velocity: guided or not; called with t as a float32 tensor [b].
        method: "euler" (1 call a step), "midpoint" and "heun" (2 calls), or "sde" (Euler-Maruyama).
        steps: steps, at least 1.
        shift: time shift of the grid, see `shift_time`.
        last_step: "sde" only: the grid runs to 1 - last_step, and a final step of this size follows the
            drift without noise (the "mean" step), because the score diverges at t = 1.
        normal: "sde" only: returns fresh standard normal noise [b, C, H, W] at each call.

    Raises:
        ValueError: an unknown method, or fewer than one step.
    """
    if method not in METHODS:
        raise ValueError(f"sampler method {method!r} is not one of {', '.join(METHODS)}")
    if steps < 1:
        raise ValueError(f"sampler steps must be at least 1, got {steps}")
    if method == "sde":
        yield from _euler_maruyama(velocity, noise, labels, steps, shift, last_step, normal)
        return
    grid = time_grid(steps, shift).tolist()
    z_t = noise
    for t0, t1 in itertools.pairwise(grid):
        dt = t1 - t0
        v0 = velocity(z_t, _at(t0, z_t), labels)
        if method == "midpoint":
            v0 = velocity(z_t + 0.5 * dt * v0, _at(t0 + 0.5 * dt, z_t), labels)
        elif method == "heun":
            v0 = 0.5 * (v0 + velocity(z_t + dt * v0, _at(t1, z_t), labels))
        z_t = z_t + dt * v0
        yield z_t


def _euler_maruyama(velocity, noise, labels, steps, shift, last_step, normal) -> Iterator[Tensor]:
    assert normal is not None, "the SDE needs a source of noise"
    grid = (time_grid(steps, shift) * (1 - last_step)).tolist()
    z_t = noise
    for t0, t1 in itertools.pairwise(grid):
        t = _at(t0, z_t)
        drift, w = sde_drift(velocity(z_t, t, labels), z_t, t)
        z_t = z_t + (t1 - t0) * drift + (2 * w * (t1 - t0)).sqrt() * normal()
        yield z_t
    if last_step > 0:
        t = _at(grid[-1], z_t)
        drift, _ = sde_drift(velocity(z_t, t, labels), z_t, t)
        yield z_t + last_step * drift


def _at(t: float, z_t: Tensor) -> Tensor:
    assert math.isfinite(t)
    return torch.full((z_t.shape[0],), t, device=z_t.device)
