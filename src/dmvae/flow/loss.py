"""The flow-matching objective and the randomness that it draws."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import as_velocity, interpolate, velocity_target
from dmvae.runtime.random import Random

TimeDistribution = Literal["uniform", "logit_normal"]


def sample_time(n: int, distribution: TimeDistribution, rng: Random) -> Tensor:
    """Times [n] in (0, 1): uniform, or the logistic of a standard normal (Stable Diffusion 3)."""
    return rng.uniform(n) if distribution == "uniform" else rng.normal(n).sigmoid()


def as_labels(labels: Tensor, n: int) -> Tensor:
    """The labels. Raises ValueError unless they are whole numbers [n]: a trainer may have names, one-hot rows, or those
    of another batch."""
    if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels: give whole numbers [{n}], one for each latent, got {labels.dtype} {[*labels.shape]}")
    return labels


def drop_labels(labels: Tensor, probability: float, null_label: int, rng: Random) -> Tensor:
    """Labels [n] with each replaced by `null_label` with the given probability, for guidance."""
    return torch.where(rng.uniform(len(labels)) < probability, null_label, labels)


def flow_matching_loss(velocity: Velocity, *, z: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """mean |v(z_t, t, label) - (z - noise)|^2, a scalar; z and noise [n, C, H, W], t [n]."""
    predicted = as_velocity(velocity(interpolate(noise=noise, z=z, t=t), t, labels), z)
    return (predicted.float() - velocity_target(noise=noise, z=z)).square().mean()
