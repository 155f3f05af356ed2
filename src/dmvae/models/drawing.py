"""Random numbers seeded by the content of an image: the same for it in any batch and on any rank, and independent
between different images.

Shapes: images x [n, c, h, w] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def content_hashes(x: Tensor) -> Tensor:
    """int64 [n], a hash of each image of x, its pixels rounded to 256 levels: equal images have equal hashes."""
    values = ((x.detach().float() + 1) * 127.5).round().long().flatten(1)
    place = torch.arange(1, values.shape[1] + 1, device=x.device)
    mixed = ((values + 1) * (place * 2654435761 % 1000003)).sum(1) * 2654435761
    return mixed // 65536


def noise(x: Tensor, shape: Sequence[int]) -> Tensor:
    """[n, *shape], standard normal, each image's from a generator that its hash seeds. For images on the meta device,
    which have no data, an empty tensor of that shape there."""
    if x.is_meta:
        return x.new_empty(len(x), *shape)
    generators = (torch.Generator().manual_seed(seed) for seed in content_hashes(x).tolist())
    parts = [torch.randn(*shape, generator=generator, device="cpu") for generator in generators]
    return torch.stack(parts).to(x.device) if parts else x.new_zeros(0, *shape)
