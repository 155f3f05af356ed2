"""Networks that predict the velocity of a flow: how they are trained, and how they are sampled.

Shapes: n samples, C H W of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from dmvae.flow.guidance import guided
from dmvae.flow.loss import TimeDistribution, flow_matching_loss, sample_time
from dmvae.flow.solver import Sampling, trajectory
from dmvae.models.base import Model
from dmvae.runtime.random import Random


class VelocityModel(Model):
    """Base of networks `velocity = model(z_t, t, labels)` with `config.num_classes`, whose value as a label means "no
    label". They are `Generator`s (dmvae.generators)."""

    time_distribution: TimeDistribution = "uniform"
    """How training times are drawn; a setting of the training, which no artifact keeps."""
    time_shift: float = 1.0
    """Their shift towards noise; the same."""

    def loss(self, z: Tensor, labels: Tensor, rng: Random) -> Tensor:
        """The flow-matching loss at random times and noise: z [n, C, H, W], labels int64 [n] -> a scalar."""
        t = sample_time(len(z), self.time_distribution, rng, self.time_shift)
        return flow_matching_loss(self, z=z, labels=labels, t=t, noise=rng.normal(*z.shape))

    def loss_and_tokens(self, z: Tensor, labels: Tensor, rng: Random, depth: int) -> tuple[Tensor, Tensor]:
        """As `loss`, by the same draws, and the tokens [n, N, d] behind the first `depth` blocks, of networks that take
        a `depth`."""
        tokens: list[Tensor] = []

        def velocity(z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            found, hidden = self(z_t, t, labels, depth)
            tokens.append(hidden)
            return found

        t = sample_time(len(z), self.time_distribution, rng, self.time_shift)
        loss = flow_matching_loss(velocity, z=z, labels=labels, t=t, noise=rng.normal(*z.shape))
        return loss, tokens[0]

    def sample(
        self, noise: Tensor, labels: Tensor, settings: Sampling, normal: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """noise [n, C, H, W] carried to latents; `normal` gives the fresh noise that stochastic samplers need."""
        z = noise
        for z in self.trajectory(noise, labels, settings, normal):  # noqa: B007
            pass
        return z

    def trajectory(
        self, noise: Tensor, labels: Tensor, settings: Sampling, normal: Callable[[], Tensor] | None = None
    ) -> Iterator[Tensor]:
        """The state after every step of `sample`, the last of which is what it returns."""
        null, interval = self.config.num_classes, settings.guidance_interval
        velocity = guided(self, settings.guidance, null, interval, settings.guide)
        return trajectory(velocity, noise, labels, settings, normal)
