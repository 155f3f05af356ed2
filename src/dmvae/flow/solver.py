"""Sampling along the path from t = 0 (noise) to t = 1 (data), by any of `dmvae.flow.samplers`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dmvae.flow.guidance import Velocity
from dmvae.flow.path import as_velocity, unlike
from dmvae.flow.samplers import Sampler, Sampling
from dmvae.registry import find

_DEFAULT = Sampling()


def trajectory(
    velocity: Velocity,
    noise: Tensor,
    labels: Tensor,
    settings: Sampling = _DEFAULT,
    normal: Callable[[], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield the state [b, C, H, W] after every step, from `noise` (t = 0) to data (t = 1).

    velocity: guided already. What `settings` says of guidance is applied by `VelocityModel.trajectory`, not here.
    normal: fresh standard normal noise like `noise` at each call, for stochastic samplers.

    Raises:
        ValueError: an unknown method, fewer than one step, a velocity or a state of another shape, no state, or no
            `normal` for a sampler that needs it.
    """
    if settings.steps < 1:
        raise ValueError(f"sampler steps must be at least 1, got {settings.steps}")
    sampler, calls = find(Sampler, settings.method)(), 0

    def checked(z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return as_velocity(velocity(z_t, t, labels), z_t)

    yielded = False
    for state in sampler.trajectory(checked, noise, labels, settings, normal):
        yielded = True
        if told := unlike(state, noise):
            raise ValueError(f"sampler {settings.method!r} yielded {told}; give states {list(noise.shape)}")
        yield state
    if not yielded:  # the noise would be taken for the samples
        raise ValueError(f"sampler {settings.method!r} yielded no state in {settings.steps} steps; give one after each")
    if settings.evaluated is not None:
        alike = torch.full((len(noise),), calls)
        settings.evaluated(alike if sampler.evaluations is None else sampler.evaluations.cpu())


def sample(
    velocity: Velocity,
    noise: Tensor,
    labels: Tensor,
    settings: Sampling = _DEFAULT,
    normal: Callable[[], Tensor] | None = None,
) -> Tensor:
    """The last state of `trajectory`: samples [b, C, H, W] at t = 1."""
    return deque(trajectory(velocity, noise, labels, settings, normal), maxlen=1).pop()
