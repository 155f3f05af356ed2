"""Networks that predict the velocity of a flow: how they are trained, and how they are sampled.

Shapes: n samples, C H W of a latent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dmvae.flow.guidance import guided
from dmvae.flow.loss import FlowPass, Times
from dmvae.flow.path import as_velocity, interpolate, velocity_target
from dmvae.flow.samplers import Sampling
from dmvae.flow.solver import trajectory
from dmvae.models.base import Model
from dmvae.runtime.random import Random


class VelocityModel(Model):
    """Base of networks `velocity = model(z_t, t, labels)` with `config.num_classes`, whose value as a label means "no
    label". They are `Generator`s (dmvae.generators)."""

    times: Times = Times()
    """How training times are drawn; a setting of the training, which no artifact keeps."""

    def loss(self, z: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """The flow-matching loss at random times and noise: z [n, C, H, W], labels int64 [n] -> a scalar. No label is
        dropped: `dmvae.flow.loss.drop_labels` does that."""
        return self.at_random_times(z, labels, rng).flow

    def at_random_times(self, z: Tensor, labels: Tensor, rng: torch.Generator, depth: int | None = None) -> FlowPass:
        """Velocities and targets at random times and noise; `loss` is their `flow`. With `depth`, for networks that
        take one, also the tokens [n, N, d] behind that many blocks. Raises ValueError for velocities of another
        shape."""
        rng = Random.of(rng, z.device)
        t = self.times.sample(len(z), rng)
        noise = rng.normal(*z.shape)
        z_t = interpolate(noise=noise, z=z, t=t)
        velocity, tokens = (self(z_t, t, labels), None) if depth is None else self(z_t, t, labels, depth)
        return FlowPass(as_velocity(velocity, z), velocity_target(noise=noise, z=z), tokens)

    def sample(
        self, noise: Tensor, labels: Tensor, settings: Sampling, normal: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """Standard normal noise [n, C, H, W] and labels int64 [n] -> latents [n, C, H, W], with guidance as in
        `settings`. normal: fresh noise at each call, for stochastic samplers."""
        return deque(self.trajectory(noise, labels, settings, normal), maxlen=1).pop()

    def trajectory(
        self, noise: Tensor, labels: Tensor, settings: Sampling, normal: Callable[[], Tensor] | None = None
    ) -> Iterator[Tensor]:
        """The state after every step of `sample`, the last of which is what it returns."""
        null, interval = self.config.num_classes, settings.guidance_interval
        velocity = guided(self, settings.guidance, null, interval, settings.guide, settings.guidance_channels)
        return trajectory(velocity, noise, labels, settings, normal)
