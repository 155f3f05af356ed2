"""A bijection of latents whose inverse is known: coupling layers (RealNVP, Dinh et al. 2017, arXiv 1605.08803).

Shapes: n latents, C channels, H W of a latent.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dmvae.runtime.precision import full_precision, without_tf32


class Coupling(nn.Module):
    """The channels are rotated and split into halves a and b. a stays, and b -> exp(s(a)) b + t(a), with |s| < 1; then
    they are rotated back, so that a layer which changes little leaves each channel as it was. [n, C, H, W] -> the same;
    the identity at first. s and t are convolutions: they see a place and its neighbours.
    """

    rotation: Tensor
    """[C, C], orthogonal."""

    def __init__(self, channels: int, width: int, rotation: Tensor):
        super().__init__()
        self.register_buffer("rotation", rotation)
        kept = channels // 2
        self.sizes = [kept, channels - kept]
        last = nn.Conv2d(width, 2 * (channels - kept), 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(cast("Tensor", last.bias))
        self.network = nn.Sequential(
            nn.Conv2d(kept, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(), last
        )

    def forward(self, z: Tensor, inverse: bool = False) -> Tensor:
        a, b = torch.einsum("dc,nchw->ndhw", self.rotation, z).split(self.sizes, dim=1)
        shift, scale = self.network(a).chunk(2, dim=1)
        scale = scale.tanh()
        b = (b - shift) * (-scale).exp() if inverse else b * scale.exp() + shift
        return torch.einsum("dc,ndhw->nchw", self.rotation, torch.cat([a, b], dim=1))


class CouplingFlow(nn.Module):
    """`layers` couplings, each in a rotation of its own: [n, C, H, W] -> the same. `flow(flow(z), inverse=True)` is z,
    up to rounding, so it computes in float32.

    Raises ValueError for latents of a single channel, which have no halves.
    """

    def __init__(self, channels: int, layers: int, width: int):
        super().__init__()
        if channels < 2:
            raise ValueError(f"latents of {channels} channel have no halves, of which one changes the other")
        # Seeded: a network built without its weights must have the rotations that the weights were trained with.
        rng = torch.Generator().manual_seed(0)
        drawn = torch.randn(layers, channels, channels, generator=rng, device="cpu")
        self.layers = nn.ModuleList(Coupling(channels, width, torch.linalg.qr(m).Q) for m in drawn)

    def forward(self, z: Tensor, inverse: bool = False) -> Tensor:
        with full_precision(z), without_tf32(z.device):
            z = z.to(next(self.parameters()).dtype)
            for layer in reversed(self.layers) if inverse else self.layers:
                z = layer(z, inverse)
            return z
