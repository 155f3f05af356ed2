"""The pixel loss."""

from __future__ import annotations

from torch import Tensor


def reconstruction_loss(x: Tensor, recon: Tensor, l1: float = 1.0, l2: float = 0.0) -> Tensor:
    """l1 mean |recon - x| + l2 mean (recon - x)^2, means over all elements: a scalar.

    x and recon: [n, C, h, w]; x in [-1, 1]. Raises ValueError when their shapes differ.
    """
    if x.shape != recon.shape:
        raise ValueError(f"reconstructions {[*recon.shape]} of images {[*x.shape]}: the shapes must be equal")
    difference = recon - x
    loss = l1 * difference.abs().mean()
    return loss + l2 * difference.square().mean() if l2 else loss
