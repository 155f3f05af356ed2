"""Samplers: one file each. A sampler carries noise (t = 0) to data (t = 1) along a velocity, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import shift_time
from dmvae.registry import Registered


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a flow is sampled."""

    method: str = "euler"
    """The sampler, by name."""
    steps: int = 50
    """Steps of the time grid."""
    time_shift: float = 1.0
    """Shift of the time grid towards noise (`shift_time`); 1 is uniform."""
    last_step: float = 0.04
    """Size of the last, noise-free step that "sde" takes after `steps` others; 0 is none."""
    guidance: float = 1.0
    """Guidance scale; 1 is none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """First and last time at which guidance acts."""
    guidance_channels: int | None = None
    """Number of channels, from the first, in which guidance acts; None is all."""
    guide: Velocity | None = None
    """A weaker network for autoguidance; None is classifier-free guidance."""


class Sampler(Registered):
    """One method; `type` is its name."""

    required: ClassVar[tuple[str, ...]] = ("trajectory",)

    def trajectory(
        self,
        velocity: Velocity,
        noise: Tensor,
        labels: Tensor,
        settings: Sampling,
        normal: Callable[[], Tensor] | None,
    ) -> Iterator[Tensor]:
        """Yield the state [b, C, H, W] after every step, from `noise` to data.

        velocity: guided already; called with t as a float32 tensor [b]. normal: fresh standard normal noise
        [b, C, H, W] at each call, for samplers that need some.
        """
        raise NotImplementedError


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """[steps + 1] times from 0 to 1, uniform and then shifted towards noise; float32 on the CPU.

    They are multiples of 2^-24, so that t, the noise level 1 - t and every step size are exact in float32:
    diffusers' schedulers count by noise level, and take the very same steps.
    """
    return 1 - (1 - shift_time(torch.linspace(0, 1, steps + 1, device="cpu"), shift))


def at(t: float, z_t: Tensor) -> Tensor:
    """The time t for every sample of z_t: [b]."""
    return torch.full((z_t.shape[0],), t, device=z_t.device)
