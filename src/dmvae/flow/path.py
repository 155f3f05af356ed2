"""The linear path between noise (t = 0) and data (t = 1), and what a velocity says on it.

The paper's text lets time run the other way (t = 0 is data there); this code follows SiT and LightningDiT. Functions
take tensors [b, ...] and times [b] in [0, 1]. Arguments that could be confused, such as noise and z, go by name.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand(t: Tensor, like: Tensor) -> Tensor:
    """[b] -> [b, 1, ..., 1] with as many dimensions as `like`."""
    return t.view(-1, *[1] * (like.ndim - 1))


def unlike(found: object, like: Tensor) -> str:
    """What `found` is, in words for an error, where it is no tensor of the shape of `like`; else an empty string."""
    if not isinstance(found, Tensor):
        return type(found).__name__
    return "" if found.shape == like.shape else f"a tensor {list(found.shape)}"


def as_velocity(velocity: Tensor, z_t: Tensor) -> Tensor:
    """The velocity itself. Raises ValueError unless it has the shape of z_t: another might broadcast unnoticed."""
    if told := unlike(velocity, z_t):
        told = told if isinstance(velocity, Tensor) else f"a {told}"
        raise ValueError(f"a velocity that is {told} for latents {list(z_t.shape)}: give a tensor of their shape")
    return velocity


def interpolate(*, noise: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - t) * noise + t * z, in the wider of the two dtypes: a user's own latents may be bfloat16."""
    dtype = torch.promote_types(noise.dtype, z.dtype)
    return noise.to(dtype).lerp(z.to(dtype), expand(t, z).to(dtype))


def velocity_target(*, noise: Tensor, z: Tensor) -> Tensor:
    """v = dz_t / dt = z - noise."""
    return z - noise


def denoise(*, z_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Denoised estimate E[z | z_t] = z_t + (1 - t) * v(z_t, t)."""
    return z_t + (1 - expand(t, z_t)) * as_velocity(velocity, z_t)


def score(*, z_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """grad log p_t(z_t) = (t * v(z_t, t) - z_t) / (1 - t); t < 1."""
    t = expand(t, z_t)
    return (t * as_velocity(velocity, z_t) - z_t) / (1 - t)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t / (t + shift * (1 - t)): nearer to noise for `shift` above 1, nearer to data below; 1 changes nothing.

    For the noise level s = 1 - t it is shift * s / (1 + (shift - 1) * s), as in Stable Diffusion 3 (arXiv 2403.03206).
    """
    return t / (t + shift * (1 - t))
