"""Maximum mean discrepancy with kernels of several bandwidths (Gretton et al. 2012)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmvae.transport.checks import require_positive, require_vectors
from dmvae.transport.sinkhorn import squares

BANDWIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def mmd(z: Tensor, y: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> Tensor:
    """mean k(z, z') + mean k(y, y') - 2 mean k(z, y), a scalar.

    z [n, d], y [m, d]. k is the mean over bandwidths b of 1 / (1 + r / b), r the squared distance divided by its mean
    between samples of y, so that bandwidths mean the same for every reference. Unbiased: a vector is not compared with
    itself, so a single value may be negative. A Gaussian kernel has no gradient beyond its widest bandwidth. This
    inverse multiquadric (Wasserstein autoencoders, arXiv 1711.01558) has longer tails, where the gradient is small but
    not zero. Raises ValueError for sets of fewer than 2 vectors, and for bandwidths that are none or not above 0.
    """
    require_vectors(z, y, least=2)
    if not bandwidths:
        raise ValueError("bandwidths is empty; give one or more, such as (0.2, 1, 5)")
    for b in bandwidths:
        require_positive(bandwidths=b)
    y = y.to(z)
    among_y = squares(y, y)
    scale = (among_y.sum() / (len(y) * (len(y) - 1))).clamp_min(1e-12)

    def mean(r: Tensor, n: int, same: bool) -> Tensor:
        total = torch.stack([1 / (1 + r / scale / b) for b in bandwidths]).mean(0).sum()
        return (total - n) / (n * (n - 1)) if same else total / r.numel()  # k(x, x) is 1

    return mean(squares(z, z), len(z), True) + mean(among_y, len(y), True) - 2 * mean(squares(z, y), 0, False)
