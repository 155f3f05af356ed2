"""Moment matching: mean and covariance only, by their squared difference."""

from __future__ import annotations

from torch import Tensor

from dmvae.transport.checks import require_vectors


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


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.T @ x / (len(x) - 1)
