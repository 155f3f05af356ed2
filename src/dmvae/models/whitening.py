"""Whitening: a matrix after which the channels of latents no longer vary together.

Shapes: n latents [n, C, H, W]; the matrix [C, C] acts on the C numbers of each place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmvae.runtime.precision import full_precision, without_tf32

THINNEST = 1e-4
"""A variance below this share of the largest counts as this share: what such a direction holds may be rounding."""


def whitening(covariance: Tensor, amount: float) -> Tensor:
    """float32 [C, C], D R^(-amount / 2), for latents of this covariance [C, C] that are then normalised per channel; R
    is their correlation matrix. The diagonal D keeps the standard deviation of each channel at 1. amount 0 gives the
    identity, 1 removes all correlation (ZCA-cor of Kessy, Lewin and Strimmer, arXiv 1512.00809), below 0 correlations
    grow."""
    covariance = covariance.double()
    std = covariance.diagonal().sqrt().clamp_min(1e-6)
    correlations = covariance / std / std[:, None]
    correlations.diagonal().fill_(1)  # of a channel that does not vary, too
    variances, directions = torch.linalg.eigh(correlations)
    raised = variances.clamp_min(THINNEST * variances.max()) ** (-amount / 2)
    left = (directions.square() @ (variances.clamp_min(0) * raised.square())).sqrt()  # std of each channel after R
    return (directions * raised @ directions.T / left[:, None]).float()


def mapped(matrix: Tensor, z: Tensor) -> Tensor:
    """matrix @ z at each place of z [n, C, H, W] or [C, H, W], in the dtype of z, not rounded by autocast or TF32. An
    image gives the same in any batch, except for rounding where H W = 1."""
    with full_precision(z), without_tf32(z.device):
        return (matrix.to(z) @ z.flatten(-2)).view_as(z)
