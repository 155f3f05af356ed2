"""How alike two images are: PSNR and SSIM. Images are uint8 [n, C, h, w]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256
"""Images at a time."""
WINDOW = 11
"""Height and width of the window of SSIM, pixels."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """10 log10(255^2 / mean squared difference) of each image, dB, float64 [n]. Images uint8 [n, C, h, w].

    An exact copy counts with a mean squared difference of 1 / (C h w), one value off by one step, so that a mean over
    images stays finite. Raises ValueError for images of another type or shape.
    """
    _check_pair(a, b)
    errors = [(x.double() - y.double()).square().mean(dim=(1, 2, 3)) for x, y in _chunks(a, b)]
    smallest = 1 / a[0].numel()
    return 10 * torch.log10(255.0**2 / torch.cat(errors).clamp_min(smallest))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The structural similarity (Wang et al. 2004) of each image, 1 for equal ones, float64 [n]. uint8 [n, C, h, w].

    As in the paper: an 11x11 Gaussian window of standard deviation 1.5, population covariance, K1 = 0.01, K2 = 0.03,
    only windows that lie inside the image; the mean over channels. Raises ValueError for images of another type or
    shape, or smaller than the window.
    """
    _check_pair(a, b)
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(f"ssim needs images of at least 11x11 pixels, not {a.shape[2]}x{a.shape[3]}")
    return torch.cat([_ssim(x.double(), y.double()) for x, y in _chunks(a, b)])


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    n = len(a)
    averages = _gaussian_average(torch.cat([a, b, a * a, b * b, a * b]))
    mean_a, mean_b, aa, bb, ab = averages.split(n)
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _gaussian_average(x: Tensor) -> Tensor:
    """[n, C, h, w] -> [n, C, h - 10, w - 10]."""
    window = torch.exp(-torch.arange(-5, 6, dtype=x.dtype, device=x.device).square() / (2 * 1.5**2))
    window /= window.sum()
    flat = x.flatten(0, 1).unsqueeze(1)
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return flat.squeeze(1).unflatten(0, x.shape[:2])


def _chunks(a: Tensor, b: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(a.split(CHUNK), b.split(CHUNK), strict=True)


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4 or a.shape != b.shape or len(a) == 0:
        raise ValueError(
            "images to compare are two uint8 tensors [n, C, h, w] of one shape, not "
            f"{a.dtype} {[*a.shape]} and {b.dtype} {[*b.shape]}"
        )
