"""Latents between data: the Frechet distance of images decoded midway between nearest neighbours (arXiv 2603.05630).

Shapes: n latents [n, C, H, W], m others. Latents are normalised per channel throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dmvae.datasets.pixels import to_uint8
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.neighbours import nearest

Decode = Callable[[Tensor], Tensor]
"""Normalised latents [n, C, H, W] -> images [n, c, h, w] in [-1, 1]."""
Path = Literal["linear", "slerp"]


def slerp(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """(sin((1 - alpha) w) a + sin(alpha w) b) / sin w, w the angle between vectors a and b, [n, ...] each.

    A point on the great circle between them, with a length between theirs; linear where they are parallel.
    """
    x, y = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=1).clamp(-1, 1)
    angle = cosine.acos()[:, None]
    straight = angle.sin() < 1e-4
    below = torch.where(straight, 1.0, angle.sin())
    on_circle = (((1 - alpha) * angle).sin() * x + (alpha * angle).sin() * y) / below
    return torch.where(straight, torch.lerp(x, y, alpha), on_circle).view_as(a)


def interpolated_frechet(
    decode: Decode,
    z: Tensor,
    points: Tensor | None,
    real: Statistics,
    extractor: Callable[[Tensor], Tensor],
    *,
    alpha: float = 0.5,
    path: Path = "linear",
    batch_size: int = 250,
) -> float:
    """iFID, in the extractor's features: Frechet distance between data and images decoded between latents.

        z' = (1 - alpha) z + alpha neighbour(z)

    A generator's samples lie between the training latents; this measures whether such latents decode to images. The
    paper encodes test images, takes neighbours among the training images' latents, and alpha = 1/2. Its text
    interpolates linearly. Its program by default interpolates on the great circle ("slerp") to a neighbour by angle,
    drawn at random from the nearest ten; here it is always the nearest, so that the number depends on the tokenizer
    alone. alpha = 0 gives the reconstructions' distance (rFD).

    Neighbours of z [n, C, H, W] are sought among `points` [m, C, H, W], or without these among the others of z; by
    distance for "linear", by angle for "slerp". real: statistics of the data's features; extractor: uint8 images ->
    features [n, d]. Raises ValueError for an unknown path, or where there is no neighbour.
    """
    if path not in ("linear", "slerp"):
        raise ValueError(f"interpolation path {path!r} is neither 'linear' nor 'slerp'")
    candidates = z if points is None else points
    _, index = nearest(z.flatten(1), None if points is None else points.flatten(1), cosine=path == "slerp")
    between = torch.lerp if path == "linear" else slerp
    parts = zip(z.split(batch_size), index[:, 0].split(batch_size), strict=True)
    images = (to_uint8(decode(between(here, candidates[there], alpha)).float()) for here, there in parts)
    return frechet_distance(real, Statistics.of(map(extractor, images)))
