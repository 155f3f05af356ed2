"""The effect of small changes: of noise in latents on images, and of moving images on latents.

Shapes: images [n, c, h, w], latents [n, C, H, W], normalised per channel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmvae.datasets.pixels import to_uint8
from dmvae.evaluation.interpolation import Decode
from dmvae.runtime.transfer import send

Encode = Callable[[Tensor], Tensor]
"""uint8 images [n, c, h, w] -> normalised latents [n, C, H, W]."""
NOISE = 0.2
"""Standard deviation of the noise for smoothness, in units of the latents'."""
BATCH = 250
"""Images, or latents, at a time."""


@torch.no_grad()
def smoothness(
    decode: Decode,
    z: Tensor,
    std: float | Tensor = NOISE,
    extractor: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = BATCH,
) -> dict[str, Tensor]:
    """How much images change when noise is added to their latents; smaller is smoother. Scalars, on the device.

        ( mean |f(D(z + std noise)) - f(D(z))|^2 / mean |f(D(z)) - mean f(D(z))|^2 )^(1/2)

    "smoothness": f is the identity, on images in [-1, 1]; for a linear decoder and white latents it equals std. With an
    extractor also "smoothness_features": f are its features of the uint8 images. std may also be a tensor that
    broadcasts to the latents [n, C, H, W]. The noise is the same at every call.
    """
    noise = send(torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), z.device)
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for part, added in zip(z.split(batch_size), noise.split(batch_size), strict=True):
        plain, moved = decode(part).float(), decode(part + std * added).float()
        rows.setdefault("smoothness", []).append((plain, moved))
        if extractor is not None:
            features = extractor(to_uint8(plain)), extractor(to_uint8(moved))
            rows.setdefault("smoothness_features", []).append(features)
    return {name: _relative(*map(torch.cat, zip(*pairs, strict=True))) for name, pairs in rows.items()}


@torch.no_grad()
def equivariance(encode: Encode, images: Tensor, stride: int) -> dict[str, float]:
    """How far encoding and moving an image are from commuting: 0 if they commute, about 1.4 if unrelated.

        ( mean |E(T x) - T E(x)|^2 / mean |E(x) - mean E(x)|^2 )^(1/2)

    "equivariance_flip": T mirrors left and right. "equivariance_shift": T moves by one latent (`stride` pixels) down,
    and right; latents at the borders, which see other pixels or padding, are left out if the grid is at least 4 wide.
    Images uint8 [n, c, h, w]. There is no shift for a grid of a single latent.
    """

    def encoded(x: Tensor) -> Tensor:
        return torch.cat([encode(part) for part in x.split(BATCH)])

    z, shifts = encoded(images), []
    flip = float(_relative(z.flip(-1), encoded(images.flip(-1))))
    for axis in (2, 3):
        size = z.shape[axis]
        border = int(size >= 4)
        inner = size - 1 - 2 * border
        if size > 1:
            moved = encoded(images.roll(stride, axis)).narrow(axis, 1 + border, inner)
            shifts.append(float(_relative(z.narrow(axis, border, inner), moved)))
    return {"equivariance_flip": flip} | ({"equivariance_shift": sum(shifts) / len(shifts)} if shifts else {})


def _relative(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square of b - a, divided by that of a about its mean; rows [n, ...]."""
    a, b = a.flatten(1), b.flatten(1)
    spread = (a - a.mean(0)).double().square().sum()
    return ((b - a).double().square().sum() / spread.clamp_min(1e-30)).sqrt()
