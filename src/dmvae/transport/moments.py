"""Moment matching: mean and covariance only, by their squared difference or by optimal transport between Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from dmvae.transport.checks import require_positive, require_vectors


def moment_matching(z: Tensor, y: Tensor) -> Tensor:
    """|mean z - mean y|^2 / d + |cov z - cov y|^2 / d.

    z [n, d], y [m, d]; squared Frobenius norms. It is 0 for any two sets with the same mean and
    covariance, whatever else differs, such as modes or a manifold. The covariance of n vectors has rank n - 1 at most,
    so give more than d vectors.
    """
    require_vectors(z, y, least=2)
    y, d = y.to(z), z.shape[1]
    mean = (z.mean(0) - y.mean(0)).square().sum()
    covariance = (_covariance(z) - _covariance(y)).square().sum()
    return (mean + covariance) / d


def gaussian_transport(z: Tensor, y: Tensor, ridge: float = 1e-3) -> Tensor:
    """mean |z_i - T(z_i)|^2 / d, T the optimal transport between the Gaussians of z's and of y's moments:

        T(z) = m_y + A (z - m_z),  A = S_y^(1/2) (S_y^(1/2) S_z S_y^(1/2))^(-1/2) S_y^(1/2)

    T is held fixed, so the gradient is that of the squared Bures distance / d. Random slices give each of d directions
    a weight of about 1 / d; T brings every direction, also one in which x hardly varies, to its variance. `ridge`, a
    share of the mean variance, is added to both covariances, so that no direction is stretched by more than
    ridge^(-1/2). z [n, d], y [m, d]; n should be several times d.
    """
    require_vectors(z, y, least=2)
    require_positive(ridge=ridge)
    with torch.no_grad():
        y = y.to(z)
        s_z, s_y = _covariance(z), _covariance(y)
        eye = ridge * s_y.diagonal().mean() * torch.eye(len(s_y), device=z.device, dtype=z.dtype)
        root = _power(s_y + eye, 0.5)
        a = root @ _power(root @ (s_z + eye) @ root, -0.5) @ root
        target = y.mean(0) + (z - z.mean(0)) @ a
    return (z - target).square().sum(1).mean() / z.shape[1]


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A symmetric positive matrix to a power."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(1e-12 * float(values[-1])) ** exponent) @ vectors.T


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.T @ x / (len(x) - 1)
