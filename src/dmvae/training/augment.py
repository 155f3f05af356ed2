"""Random views of a batch: all images in a few tensor operations. Torchvision's transforms draw one set of parameters
per call, so they would need a call for each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.runtime.precision import full_precision
from dmvae.runtime.random import Random


def random_view(x: Tensor, rng: Random, min_crop: float = 0.3, jitter: float = 0.4) -> Tensor:
    """A crop of random place, size and aspect, mirrored half the time, of random brightness and contrast.

    x: images [n, c, h, w] in [-1, 1]; the result, of the same shape, may lie outside of it. jitter: contrast is
    multiplied by 1 - jitter to 1 + jitter, and at most jitter / 2 is added or subtracted.
    A crop's area is a share of the image's, uniform between `min_crop` and 1; its width over its height is from 9/16 to
    16/9, uniform in the logarithm. A side longer than the image is cut to it, so for a `min_crop` above 9/16 the
    smallest area is 3/4 sqrt(min_crop).
    """
    n = len(x)
    area, ratio, dx, dy, flip, bright, contrast = rng.uniform(n, 7).unbind(1)
    side = (min_crop + (1 - min_crop) * area).sqrt()
    stretch = (0.5756 * ratio - 0.2878).exp()  # 3/4 to 4/3: the factor of one side, and the divisor of the other
    w, h = (side * stretch).clamp_max(1), (side / stretch).clamp_max(1)
    theta = torch.zeros(n, 2, 3, device=x.device)
    theta[:, 0, 0] = torch.where(flip < 0.5, w, -w)
    theta[:, 1, 1] = h
    theta[:, 0, 2] = (2 * dx - 1) * (1 - w)
    theta[:, 1, 2] = (2 * dy - 1) * (1 - h)
    with full_precision(x):  # autocast would round places to a quarter of a pixel
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    view = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    gain = (1 + jitter * (2 * contrast - 1)).view(-1, 1, 1, 1)
    return view * gain + (jitter * (bright - 0.5)).view(-1, 1, 1, 1)


def random_crop(x: Tensor, size: int, rng: Random) -> Tensor:
    """A square of each image [n, c, h, h], at a place of its own, all equally likely: [n, c, size, size]."""
    n, c, side, _ = x.shape
    image, channel, along = (torch.arange(count, device=x.device) for count in (n, c, size))
    top, left = (rng.integers(side - size + 1, n)[:, None] + along for _ in range(2))
    return x[image.view(n, 1, 1, 1), channel.view(c, 1, 1), top.view(n, 1, size, 1), left.view(n, 1, 1, size)]


def random_flip(x: Tensor, rng: Random) -> Tensor:
    """Mirror each image [n, c, h, w] left to right with probability 1/2."""
    return torch.where((rng.uniform(len(x)) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
