"""Kernel drift: latents move to where the reference is dense and other latents are not."""

from __future__ import annotations

import torch
from torch import Tensor

from dmvae.transport.checks import require_positive, require_vectors
from dmvae.transport.sinkhorn import squares


def drift(z: Tensor, y: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """The drift V [n, d] of z [n, d], and the bandwidth h used, a scalar in the units of z.

        V(z_i) = mean of y weighted by k(z_i, y)  -  mean of x weighted by k(z_i, x),   k(a, b) = exp(-|a - b| / h)

    x are the latents other than z_i. Minus z_i, the two means are mean shifts: each points to where its set is denser.
    So V is 0 where both sets are many samples of one distribution, and latents that crowd push each other away. Weights
    sum to 1, so that V does not vanish however far z is from y. h is `bandwidth` times the mean distance between z and
    y, so that the kernel fits sets that are far apart. No gradient. Raises ValueError for fewer than 2 vectors in a
    set, and for a bandwidth that is not above 0.
    """
    require_vectors(z, y, least=2)
    require_positive(bandwidth=bandwidth)
    z, y = z.detach(), y.to(z)
    to_y, to_z = squares(z, y).sqrt(), squares(z, z).sqrt()
    h = bandwidth * to_y.mean().clamp_min(1e-12)
    to_z.fill_diagonal_(torch.inf)
    return (-to_y / h).softmax(1) @ y - (-to_z / h).softmax(1) @ z, h


def kernel_drift(z: Tensor, y: Tensor, progress: float = 1.0, bandwidths: tuple[float, float] = (0.5, 0.05)) -> Tensor:
    """mean_i |z_i - stop_grad(z_i + V(z_i))|^2 / 2, a scalar, whose gradient at z_i is -V(z_i) / n; see `drift`.

    The bandwidth moves geometrically from the first to the second of `bandwidths` as `progress` goes from 0 to 1: wide
    kernels bring distant latents near, narrow ones see the reference's fine structure. Raises ValueError for
    `progress` outside of 0 to 1, and as `drift`.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; give the share of the run that is done, from 0 to 1")
    require_positive(bandwidths=min(bandwidths))
    wide, narrow = bandwidths
    v, _ = drift(z, y, wide * (narrow / wide) ** progress)
    return 0.5 * (z - (z.detach() + v)).square().sum(1).mean()
