"""Energy distance between two sets of vectors (Szekely & Rizzo 2013)."""

from __future__ import annotations

import torch
from torch import Tensor

from dmvae.transport.checks import require_vectors
from dmvae.transport.sinkhorn import squares


def energy_distance(z: Tensor, y: Tensor, unbiased: bool = True) -> Tensor:
    """2 mean |z - y| - mean |z - z'| - mean |y - y'|.

    z [n, d], y [m, d]. Between distributions it is 0 if they are equal, and positive otherwise. With
    `unbiased`, a vector is not compared with itself: two samples of one distribution have expectation 0, and single
    values may be negative. Without, it is the distance between the two sets, never negative, and 0 for equal sets. Its
    gradient has a length of order 1 however far z is, so it neither explodes nor vanishes.
    """
    require_vectors(z, y, least=2)
    y = y.to(z)
    return 2 * distances(z, y).mean() - _among(z, unbiased) - _among(y, unbiased)


def _among(x: Tensor, unbiased: bool) -> Tensor:
    n = len(x)
    return distances(x, x, same=True).sum() / (n * (n - 1 if unbiased else n))


def distances(a: Tensor, b: Tensor, same: bool = False) -> Tensor:
    """Euclidean distances [n, m], with gradient 0 where two vectors are the same. same: b is a, so that no vector has a
    distance to itself: rounding gives it one, whose root's steep slope makes up to a third of the gradient."""
    square = squares(a, b)
    if same:
        square = square.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), 0)
    return (square + 1e-12).sqrt()
