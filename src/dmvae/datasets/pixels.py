"""Pixels: uint8 in files and data sets, floats in [-1, 1] in networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def as_input(data: Tensor, device: torch.device) -> Tensor:
    """float32 on the device: uint8 images [n, c, h, w] in [-1, 1], channels last; latents with their values."""
    data = data.to(device, non_blocking=True)
    if data.dtype is torch.uint8:
        return data.to(memory_format=torch.channels_last).float().div_(127.5).sub_(1.0)
    return data.float()


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [n, c, h, w] in [-1, 1] -> [n, c, *size] in [-1, 1]: antialiased bicubic; unchanged if they have that
    size."""
    if images.shape[2:] == size:
        return images
    # in float32: a CPU cannot resize others
    return F.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(-1, 1).to(images.dtype)


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8 in 0 .. 255: clamped, then rounded to the nearest value. Raises FloatingPointError for
    NaN, which would become some grey level."""
    if x.isnan().any():
        raise FloatingPointError("images hold NaN: look at the losses and the weights of what made them")
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def unit_to_uint8(images: Tensor) -> Tensor:
    """Images [n, C, h, w], float in [0, 1] or uint8 already -> uint8. Raises ValueError for values outside; for images
    in [-1, 1] see `to_uint8`."""
    if images.dtype == torch.uint8:
        return images
    low = high = 0.0
    if images.is_floating_point() and images.numel():
        low, high = (float(v) for v in torch.aminmax(images))
    if not images.is_floating_point() or not (low >= 0 and high <= 1):  # `not`: NaN is outside too
        span = f" from {low:g} to {high:g}" if images.is_floating_point() else ""
        raise ValueError(
            f"images are uint8 or floats in [0, 1], not {images.dtype}{span}; for [-1, 1] use "
            "dmvae.datasets.pixels.to_uint8, others divide and clamp first"
        )
    return (images * 255).round().to(torch.uint8)
