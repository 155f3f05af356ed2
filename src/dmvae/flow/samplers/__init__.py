"""Samplers: one file each. A sampler carries noise (t = 0) to data (t = 1) along a velocity, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmvae.config import Values, added
from dmvae.flow.guidance import Velocity, require_interval
from dmvae.flow.path import shift_time
from dmvae.ranges import Decay, SamplerSteps, Scale, Share, TimeShift, Width
from dmvae.registry import Registered, absent, find, names


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How noise is carried to data: what stage `sample`, `dmvae measure samples` and the pipeline of diffusers take."""

    method: str = "euler"
    """The sampler: "euler", "midpoint" or "heun" for the ODE, "dopri5" for the ODE by steps that adapt, "sde" for
    Euler-Maruyama."""
    steps: SamplerSteps = 50
    """Steps of the sampler; of dopri5, the most that it may try."""
    time_shift: TimeShift = 1.0
    """Shift of the time grid towards noise; 1 is uniform."""
    last_step: Decay = 0.04
    """Size of the SDE's last, noise-free step, from 0 to below 1; 0 is none."""
    last_step_kind: Literal["mean", "euler"] = added("mean")
    """What that step follows: "mean" the SDE's drift; "euler" the velocity alone, to the denoised estimate, as SiT's
    "Euler" and "Tweedie" do."""
    diffusion: Literal["sigma", "constant", "sbdm", "decreasing", "increasing_decreasing"] = added("sigma")
    """How much noise the SDE adds at time t, w(t): "sigma" 1 - t; "constant" 1; "sbdm" (1 - t) / t; "decreasing"
    (1 + cos(pi t))^2 / 4; "increasing_decreasing" sin(pi t)^2. The names are SiT's."""
    atol: Scale = added(1e-6)
    """Error of a value that a step of dopri5 may make."""
    rtol: Scale = added(1e-3)
    """The same as a share of the value, beside `atol`."""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """The range of times, in [0, 1], in which guidance is used."""
    guidance_channels: Width | None = added(None)
    """Number of channels, from the first, in which guidance acts; LightningDiT guides 3 of 32. null is all."""

    def __post_init__(self) -> None:
        if self.method not in names(Sampler):
            raise ValueError(f"method: {absent(Sampler, self.method, 'sampler')}")
        require_interval(self.guidance_interval)

    def settings(self, guidance: float = 1.0, guide: Velocity | None = None) -> Sampling:
        """The sampler's settings at one guidance scale, and the network that guides, if any."""
        shared: Values = {field.name: getattr(self, field.name) for field in fields(SamplerConfig)}
        return Sampling(**shared, guidance=guidance, guide=guide)

    def arguments(self) -> Values:
        """The arguments of a pipeline's call that draw by these settings."""
        own = {field.name for field in fields(SamplerConfig)} - {"steps", *self.unread()}
        return {"num_inference_steps": self.steps} | {name: x for name, x in vars(self).items() if name in own}

    def unread(self) -> list[str]:
        """The fields that are not at their default, and that the method does not read."""
        ignored = find(Sampler, self.method).ignores + (("last_step_kind",) if self.last_step == 0 else ())
        return [f.name for f in fields(SamplerConfig) if f.name in ignored and getattr(self, f.name) != f.default]

    def require_read(self) -> None:
        """Raise ValueError for a field that would change nothing, where one person gives them all, as in a call. Runs
        warn instead (`dmvae.idle`): a recipe may have got the field from another."""
        if unread := self.unread():
            raise ValueError(
                f"{unread[0]}: {getattr(self, unread[0])!r} would change nothing, as method {self.method!r} does not "
                "read it; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class Sampling(SamplerConfig):
    """How a flow is sampled."""

    guidance: float = 1.0
    """Guidance scale; 1 is none."""
    guide: Velocity | None = None
    """A weaker network for autoguidance; None is classifier-free guidance."""
    evaluated: Callable[[Tensor], None] | None = None
    """Told at the end how often each image's velocity was asked for, int64 [b]."""


class Sampler(Registered):
    """One method; `type` is its name."""

    required: ClassVar[tuple[str, ...]] = ("trajectory",)
    ignores: ClassVar[tuple[str, ...]] = ()
    """The fields of `SamplerConfig` that it does not read."""
    evaluations: Tensor | None = None
    """How often each image's velocity was asked for, int64 [b], where that differs by image."""

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
