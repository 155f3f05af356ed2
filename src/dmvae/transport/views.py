"""Views: sets of latents [n, C, H, W] as sets of vectors [k, d], which is what distances take.

A distance between whole latents sees how tokens depend on each other, but has only n vectors, of C H W components. One
between tokens has n H W vectors of C components and so more detail, but does not see how they depend on each other.
Pairs of neighbouring tokens are in between.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.runtime.precision import full_precision

View = Callable[[Tensor], Tensor]
"""Latents [n, C, H, W] -> vectors [k, d]."""


def whole(z: Tensor) -> Tensor:
    """[n, C, H, W] -> [n, C H W]: one vector each. Vectors [n, d] stay as they are."""
    return z.flatten(1)


def tokens(z: Tensor) -> Tensor:
    """[n, C, H, W] -> [n H W, C]: a vector per place, row by row, one latent after the other."""
    _require_latents(z)
    return z.flatten(2).transpose(1, 2).flatten(0, 1)


def pairs(z: Tensor) -> Tensor:
    """[n, C, H, W] -> [n k, 2 C]: each place joined with its right and with its lower neighbour, k = 2 H W - H - W of
    them a latent. Raises ValueError for a grid of a single place."""
    _require_latents(z)
    if z.shape[2] * z.shape[3] == 1:
        raise ValueError("latents with a single token have no pairs of neighbours; leave the view `pairs` out")
    across = torch.cat([z[:, :, :, :-1], z[:, :, :, 1:]], dim=1).flatten(2)
    down = torch.cat([z[:, :, :-1], z[:, :, 1:]], dim=1).flatten(2)
    return torch.cat([across, down], dim=2).transpose(1, 2).flatten(0, 1)


def random_convolution(inputs: int, rng: torch.Generator, channels: int = 32) -> View:
    """A view through one random 3x3 convolution from `inputs` channels to `channels`.

    [n, C, H, W] -> [n H W, channels], C the inputs. Each output channel's kernel has unit norm, the padding is zeros,
    and half of the channels pass through |x|, so that slices see dependence between components that a linear map hides.
    Use the same view for z and y, and a new one for each update.
    """
    kernel = torch.randn(channels, inputs * 9, generator=rng, device=rng.device)
    kernel = F.normalize(kernel, dim=1).view(channels, inputs, 3, 3)

    def view(z: Tensor) -> Tensor:
        _require_latents(z)
        with full_precision(z):  # vectors that are compared keep their digits
            x = F.conv2d(z, kernel.to(z), padding=1)
        folded = torch.cat([x[:, : channels // 2], x[:, channels // 2 :].abs()], dim=1)
        return tokens(folded)

    return view


def _require_latents(z: Tensor) -> None:
    if z.ndim != 4:
        raise ValueError(f"latents have shape {list(z.shape)}; this view needs [n, C, H, W]; for vectors use `whole`")
