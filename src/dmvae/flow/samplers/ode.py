"""Samplers of the ODE dz = v dt: Euler, midpoint and Heun."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.samplers import Sampler, Sampling, at, time_grid
from dmvae.registry import register


class ODESampler(Sampler):
    """Steps z <- z + dt * slope; subclasses define the slope."""

    ignores = ("last_step", "last_step_kind", "diffusion", "atol", "rtol")

    def slope(self, velocity: Velocity, z_t: Tensor, t0: float, t1: float, labels: Tensor) -> Tensor:
        """An estimate of the mean velocity between times t0 and t1: [b, C, H, W]."""
        raise NotImplementedError

    def trajectory(
        self,
        velocity: Velocity,
        noise: Tensor,
        labels: Tensor,
        settings: Sampling,
        normal: Callable[[], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        z_t = noise
        for t0, t1 in itertools.pairwise(time_grid(settings.steps, settings.time_shift).tolist()):
            z_t = z_t + (t1 - t0) * self.slope(velocity, z_t, t0, t1, labels)
            yield z_t


@register("euler")
class Euler(ODESampler):
    """The velocity at the start of a step; one call of the network."""

    def slope(self, velocity: Velocity, z_t: Tensor, t0: float, t1: float, labels: Tensor) -> Tensor:
        return velocity(z_t, at(t0, z_t), labels)


@register("midpoint")
class Midpoint(ODESampler):
    """The velocity in the middle of a step, reached by half an Euler step; two calls of the network."""

    def slope(self, velocity: Velocity, z_t: Tensor, t0: float, t1: float, labels: Tensor) -> Tensor:
        half = 0.5 * (t1 - t0)
        v0 = velocity(z_t, at(t0, z_t), labels)
        return velocity(z_t + half * v0, at(t0 + half, z_t), labels)


@register("heun")
class Heun(ODESampler):
    """The mean of the velocities at both ends of an Euler step; two calls of the network."""

    def slope(self, velocity: Velocity, z_t: Tensor, t0: float, t1: float, labels: Tensor) -> Tensor:
        v0 = velocity(z_t, at(t0, z_t), labels)
        return 0.5 * (v0 + velocity(z_t + (t1 - t0) * v0, at(t1, z_t), labels))
