"""Energy distance between two sets of vectors (Szekely & Rizzo 2013)."""

from __future__ import annotations

import torch
from torch import Tensor

from dmvae.transport.checks import require_vectors
from dmvae.transport.sinkhorn import squares


def energy_distance(z: Tensor, y: Tensor, unbiased: bool = True) -> Tensor:
    """2 mean |z - y| - mean |z - z'| - mean |y - y'|, a scalar.

    z [n, d], y [m, d]. Between distributions it is 0 if they are equal, and positive otherwise. With `unbiased`, a
    vector is not compared with itself: the expectation for two samples of one distribution is 0, and a single value may
    be negative. Without, it is the distance between the two sets, never negative, and 0 for equal sets. n times the
    gradient at a vector has a length of order 1 however far z is, so it neither explodes nor vanishes. Raises
    ValueError for sets of fewer than 2 vectors.
    """
    require_vectors(z, y, least=2)
    y = y.to(z)
    return 2 * distances(z, y).mean() - _among(z, unbiased) - _among(y, unbiased)


def _among(x: Tensor, unbiased: bool) -> Tensor:
    n = len(x)
    return distances(x, x, same=True).sum() / (n * (n - 1 if unbiased else n))


def distances(a: Tensor, b: Tensor, same: bool = False) -> Tensor:
    """Euclidean distances [n, m] of a [n, d] and b [m, d], with gradient 0 where two vectors are the same. same: b is
    a. A vector's squared distance to itself is then set to 0: rounding makes it positive, where the root is so steep
    that this was up to a third of the gradient."""
    square = squares(a, b)
    if same:
        square = square.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), 0)
    return (square + 1e-12).sqrt()
