"""The flow-matching objective and the randomness that it draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import as_velocity, interpolate, shift_time, velocity_target
from dmvae.runtime import distributed
from dmvae.runtime.random import Random

TimeDistribution = Literal["uniform", "logit_normal"]
QUANTILES = 64
"""Quantiles of the distribution of times over which `gaussian_loss` takes its mean."""


@dataclass(frozen=True)
class Times:
    """The distribution of training times, which are 0 at noise and 1 at data: uniform, or the logistic function of a
    normal number of some mean and standard deviation (Stable Diffusion 3, arXiv 2403.03206); then moved by
    `shift_time`.

    A mean below 0 moves times towards noise. So does a shift above 1: to logit-normal times, it is a mean that is
    smaller by log(shift). Where t is 1 at noise, as in SD3 and RAE, the mean has the other sign; LightningDiT's times
    run as ours. Raises ValueError for an unknown distribution, and for uniform times with a mean or a deviation.
    """

    distribution: TimeDistribution = "uniform"
    shift: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.distribution not in get_args(TimeDistribution):
            known = " or ".join(map(repr, get_args(TimeDistribution)))
            raise ValueError(f"time_distribution: give {known}, got {self.distribution!r}")
        for name, value, usual in (("time_mean", self.mean, 0), ("time_std", self.std, 1)):
            if not isinstance(value, Real) or (name == "time_std" and value <= 0):
                raise ValueError(f"{name}: expected a number{', above 0' * (name == 'time_std')}, got {value!r}")
            if self.distribution == "uniform" and value != usual:
                raise ValueError(f"{name}: uniform times have none; set time_distribution: logit_normal")

    def quantile(self, share: Tensor) -> Tensor:
        """The times below which these shares of all times are; shares above 0 and below 1."""
        return self._moved(share if self.distribution == "uniform" else torch.special.ndtri(share))

    def sample(self, n: int, rng: Random) -> Tensor:
        """Times [n] in [0, 1]."""
        return self._moved(rng.uniform(n) if self.distribution == "uniform" else rng.normal(n))

    def _moved(self, drawn: Tensor) -> Tensor:
        """Uniform or standard normal numbers as times."""
        t = drawn if self.distribution == "uniform" else (self.mean + self.std * drawn).sigmoid()
        return t if self.shift == 1 else shift_time(t, self.shift)


def require_batch(z: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless z are float latents [n, C, H, W], n at least 1, and labels int64 or int32 [n]. A user's
    own loop may pass tokens, names, one-hot rows, bytes, or the labels of another batch."""
    if not isinstance(z, Tensor) or z.ndim != 4 or not len(z) or not z.is_floating_point():
        raise ValueError(f"z: give latents [n, C, H, W], n at least 1, of floats; got {_what(z)}")
    whole = isinstance(labels, Tensor) and labels.dtype in (torch.int64, torch.int32)  # what an embedding takes
    if not whole or labels.shape != (len(z),):
        raise ValueError(f"labels: give a tensor int64 [{len(z)}], one for each latent; got {_what(labels)}")


def _what(x: object) -> str:
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def drop_labels(labels: Tensor, probability: float, null_label: int, rng: torch.Generator) -> Tensor:
    """Labels [n] with each replaced by `null_label` with the given probability, for guidance."""
    rng = Random.of(rng, labels.device)
    return torch.where(rng.uniform(len(labels)) < probability, null_label, labels)


class FlowPass(NamedTuple):
    """A network's velocities of noised latents and their targets, both [n, C, H, W]."""

    predicted: Tensor
    target: Tensor
    """z - noise."""
    tokens: Tensor | None = None
    """[n, N, d], the activations behind a block of the network; None unless asked for."""

    @property
    def flow(self) -> Tensor:
        """Mean over all elements of (v - (z - noise))^2: a scalar."""
        return (self.predicted.float() - self.target).square().mean()

    @property
    def direction(self) -> Tensor:
        """Mean over images and places of 1 - cos(v, z - noise), the cosine over channels: a scalar from 0 to 2
        (FasterDiT, arXiv 2410.10356)."""
        return (1 - F.cosine_similarity(self.predicted.float(), self.target, dim=1)).mean()


def flow_matching_loss(velocity: Velocity, *, z: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mean over all elements of (v(z_t, t, label) - (z - noise))^2: a scalar. z and noise [n, C, H, W], labels and t
    [n]. Raises ValueError for velocities of another shape than z."""
    predicted = as_velocity(velocity(interpolate(noise=noise, z=z, t=t), t, labels), z)
    return FlowPass(predicted, velocity_target(noise=noise, z=z)).flow


def _spread(z: Tensor) -> Tensor:
    """[C, H, W], the standard deviation of each element of z [n, C, H, W] over the images of all ranks; a scalar for a
    single image, over its elements."""
    n = len(z) * distributed.world_size()
    if n == len(z) or n == 1:
        return z.std(0) if n > 1 else z.std()
    mean, square = distributed.average(torch.stack([z.mean(0), z.square().mean(0)])).unbind()
    return ((square - mean.square()).clamp_min(0) * n / (n - 1)).sqrt()


def gaussian_loss(z: Tensor, times: Times) -> Tensor:
    """Flow-matching loss of the best velocity that knows only the mean and the standard deviation s of each element of
    latents z [n, C, H, W]: a scalar, to which "student/lag" is relative.

    It is the mean over elements and times of s^2 / (t^2 s^2 + (1 - t)^2), the variance of z - noise given z_t for
    normal z. For uniform times without shift that is s pi / 2. s is taken over the images of all ranks; from few images
    it is too small on average.
    """
    s = _spread(z.detach().float())
    if times.distribution == "uniform" and times.shift == 1:
        mean: Tensor = math.pi / 2 * s.mean()
    else:
        share = (torch.arange(QUANTILES, device=z.device) + 0.5) / QUANTILES
        t = times.quantile(share).view(-1, *[1] * s.ndim)
        mean = (s**2 / ((t * s) ** 2 + (1 - t) ** 2)).mean()
    return mean
