"""Moment matching: mean and covariance only, by their squared difference."""

from __future__ import annotations

from torch import Tensor

from dmvae.transport.checks import require_vectors

FEWEST = 4
"""Vectors of a set. Two pairs of independent ones tell a squared covariance without bias."""


def moment_matching(z: Tensor, y: Tensor) -> Tensor:
    """|m_z - m_y|^2 / d + (U(z) + U(y) - 2 tr S_z S_y) / d, means m and covariances S of z [n, d] and y [m, d].

    The second part is |cov z - cov y|^2, squared Frobenius norm, estimated without bias. |S|^2 of n vectors is larger
    on average than that of their distribution by about (tr S)^2 / (n - 1), as if narrower latents were nearer: with n
    below d they would shrink to less than 0.7 of the reference's spread. U is the mean of ((a - b) (c - e))^2 / 4 over
    all a, b, c, e that are four vectors of the set, which are independent. With x of them, centred, it is

        U = (n - 1) / (n (n - 2) (n - 3)) ((n - 1) (n - 2) |S|^2 + (tr S)^2 - n sum |x|^4 / (n - 1))

    The distance is 0 on average between samples of distributions of the same mean and covariance, whatever else
    differs, such as modes or a manifold, but for the variance of the means. Single values may be negative. It is for
    new latents in each turn: of one small set that is compared whole in every turn, some go ever farther out.
    """
    require_vectors(z, y, least=FEWEST)
    y, d = y.to(z), z.shape[1]
    mean = (z.mean(0) - y.mean(0)).square().sum()
    (s_z, bias_z), (s_y, bias_y) = _covariance(z), _covariance(y)
    return (mean + (s_z - s_y).square().sum() - bias_z - bias_y) / d


def _covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """S [d, d] of x [n, d], and |S|^2 - U: by how much too large |S|^2 is on average."""
    n, x = len(x), x - x.mean(0)
    s = x.T @ x / (n - 1)
    lengths = x.square().sum(1)
    fourth = lengths.square().sum() / (n - 1)
    bias = (n - 1) / (n - 2) * (n * fourth - s.trace().square()) - (n + 1) * s.square().sum()
    return s, bias / (n * (n - 3))
