"""Differences of the first two moments."""

from __future__ import annotations

from torch import Tensor

from dmvae.transport.checks import require_vectors

FEWEST = 3
"""The fewest vectors of a set: of two there is no unbiased estimate of the squared covariance."""


def moment_matching(z: Tensor, y: Tensor) -> Tensor:
    """|m_z - m_y|^2 / d + (U(z) + U(y) - 2 tr S_z S_y) / d, means m and covariances S of z [n, d] and y [m, d].

    A scalar. The second part is an estimate of |S_z - S_y|^2, the squared Frobenius norm, without its bias: |S|^2 of n
    vectors is larger on average than that of their distribution by about (tr S)^2 / (n - 1), as if narrower latents
    were nearer; with n below d they would shrink to less than 0.7 of the reference's spread. For normal vectors

        U = (n - 1)^2 / ((n - 2) (n + 1)) (|S|^2 - (tr S)^2 / (n - 1))

    has no bias (Srivastava, J. Japan Statist. Soc. 35, 2005). Between samples of normal distributions of the same mean
    and covariance the average is the variance of the means alone; between other distributions of the same moments it is
    near that, whatever else differs, such as modes. Single values may be negative. Raises ValueError for sets of fewer
    than 3 vectors.
    """
    require_vectors(z, y, least=FEWEST)
    y, d = y.to(z), z.shape[1]
    mean = (z.mean(0) - y.mean(0)).square().sum()
    s_z, s_y = _covariance(z), _covariance(y)
    covariance = _squared(s_z, len(z)) + _squared(s_y, len(y)) - 2 * (s_z * s_y).sum()
    return (mean + covariance) / d


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.T @ x / (len(x) - 1)


def _squared(s: Tensor, n: int) -> Tensor:
    """U of the covariance s of n vectors."""
    return (n - 1) ** 2 / ((n - 2) * (n + 1)) * (s.square().sum() - s.trace().square() / (n - 1))
