"""Guidance: classifier-free, by one batched call for both velocities, or by another network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmvae.flow.path import as_velocity, expand

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_t [b, C, H, W], t [b], labels [b]) -> velocity [b, C, H, W]."""


ROUNDING = 2**-20
"""Tolerance of the comparison of a sampler's time, which is rounded, with the ends of an interval."""


def require_interval(interval: tuple[float, float]) -> None:
    """Raise ValueError for an interval that ends before it begins: guidance would silently never act."""
    if interval[0] > interval[1]:
        raise ValueError(f"guidance_interval: its first time is after its second, {list(interval)}")


def require_channels(channels: int | None, there: int) -> None:
    """Raise ValueError for more channels to guide than latents have."""
    if channels is not None and channels > there:
        raise ValueError(
            f"guidance_channels: {channels} of latents that have {there}; give fewer, or leave it out for all"
        )


def require_taught(
    dropped: float | None, scale: float, *, labelled: bool, unlabelled: bool, guides_itself: bool
) -> None:
    """Raise ValueError where a generator is asked for velocities that its training with this `label_dropout` (None:
    unknown) has not taught it: images would come all the same.

    labelled, unlabelled: whether images of a class, and of none, are asked for, with guidance of this scale.
    guides_itself: whether it would be by the generator's own velocity without a label.
    """
    if dropped == 0 and (unlabelled or (scale != 1 and guides_itself)):
        raise ValueError(
            "label_dropout: 0 taught this generator no velocity without a label; ask for a class, and guidance 1"
        )
    if dropped == 1 and labelled and scale != 0:
        raise ValueError(
            "label_dropout: 1 taught this generator no velocity with a label; ask for no class, or guidance 0"
        )


def guided(
    velocity: Velocity,
    scale: float,
    null_label: int,
    interval: tuple[float, float] = (0.0, 1.0),
    guide: Velocity | None = None,
    channels: int | None = None,
) -> Velocity:
    """v_guide + scale * (v - v_guide), for times inside `interval` and in the first `channels` (None: all); else v.

    v is the velocity with the label. v_guide is the same network's with `null_label` (classifier-free guidance, arXiv
    2207.12598), or the velocity with the label of a weaker network `guide` (autoguidance, arXiv 2406.02507).

    `scale` = 1 calls the network once. Each sample's own time is compared with the interval (arXiv 2404.07724), so a
    batch may mix times inside and outside. What is returned raises ValueError for velocities that are not like z_t.
    """
    if scale == 1.0:
        return lambda z_t, t, labels: as_velocity(velocity(z_t, t, labels), z_t)

    def call(z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        if guide is None:
            twice = torch.cat([z_t, z_t])
            both = velocity(twice, torch.cat([t, t]), torch.cat([labels, torch.full_like(labels, null_label)]))
            cond, other = as_velocity(both, twice).chunk(2)
        else:
            cond, other = (as_velocity(network(z_t, t, labels), z_t) for network in (velocity, guide))
        inside = (t >= interval[0] - ROUNDING) & (t <= interval[1] + ROUNDING)
        w = expand(torch.where(inside, scale, 1.0).to(cond.dtype), z_t)
        found = other + w * (cond - other)
        return found if channels is None else torch.cat([found[:, :channels], cond[:, channels:]], dim=1)

    return call
