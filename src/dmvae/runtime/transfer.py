"""What keeps this process from waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. A GPU fetches it from pinned memory while this process goes on; from other memory it cannot."""
    if device.type != "cuda" or x.device == device:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def covariance(x: Tensor) -> Tensor:
    """The covariance [d, d] of vectors x [n, d], divided by n - 1: torch.cov(x.T), bit for bit, but for its look at a
    value, for which it waits."""
    y = x.T
    y = y - (y.sum(1) / len(x))[:, None]
    return (y @ y.T) / (len(x) - 1)
