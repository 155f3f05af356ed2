"""The Frechet distance between two sets of features, each taken as a Gaussian (arXiv 1706.08500).

Shapes: n vectors of d components. Everything here is float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1024
REGULAR = 1e-5
"""A covariance counts as regular if the smallest Cholesky pivot (a standard deviation) is more than this share of the
largest."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and covariance of a set of features."""

    n: int | None
    """Number of vectors; None where a file does not give it."""
    mean: Tensor
    """float64 [d]."""
    covariance: Tensor
    """float64 [d, d], divided by n - 1."""

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> Statistics:
        """Statistics of features [n, d], or of batches of them, by Chan's update, which loses no digits to cancellation
        as a sum of squares does. Raises ValueError for fewer than 2 vectors, other shapes or non-finite values."""
        n, mean, scatter = 0, torch.zeros(()).double(), torch.zeros(()).double()  # sum of (x - mean) (x - mean)^T
        for block in _blocks([features] if isinstance(features, Tensor) else features):
            count, of_block = len(block), block.mean(0)
            centred, change = block - of_block, of_block - mean
            scatter = centred.T @ centred + (scatter + torch.outer(change, change) * (n * count / (n + count)))
            mean = mean + change * (count / (n + count))
            n += count
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 vectors, not {n}")
        return cls(n=n, mean=mean, covariance=scatter / (n - 1))

    @property
    def std(self) -> Tensor:
        """Standard deviations, float64 [d]."""
        return self.covariance.diagonal().sqrt()


def _blocks(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The rows of batches [n, d] as float64, BLOCK at a time, so that no bit of a result depends on how the rows were
    cut into batches."""
    waiting: list[Tensor] = []
    for batch in batches:
        rows = batch.detach().to("cpu")
        if rows.ndim != 2 or (waiting and rows.shape[1] != waiting[0].shape[1]):
            raise ValueError(f"vectors to average have shape [n, d] with one d, not {[*rows.shape]}")
        if not rows.isfinite().all():
            raise ValueError("vectors to average hold NaN or infinite values")
        waiting.append(rows)
        if (count := sum(map(len, waiting))) >= BLOCK:
            rows, whole = torch.cat(waiting), count // BLOCK * BLOCK
            yield from (block.double() for block in rows[:whole].split(BLOCK))
            waiting = [rows[whole:].clone()]  # a copy: a view of a few rows would keep the whole batch in memory
    if any(map(len, waiting)):
        yield torch.cat(waiting).double()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), of the covariances A and B.

    Warns where a set has no more vectors than a feature has components: its covariance is then singular and the
    distance biased upwards. Raises ValueError when the two have different numbers of components.
    """
    d = len(a.mean)
    if len(b.mean) != d:
        raise ValueError(f"the sets have features of {d} and {len(b.mean)} components: use one extractor for both")
    _warn_of_few(a.n, b.n, d)
    trace = a.covariance.trace() + b.covariance.trace() - 2 * _trace_of_root(a.covariance, b.covariance)
    return float((a.mean - b.mean).square().sum() + trace)


def frechet_distance_of_few(a: Tensor, b: Tensor) -> float:
    """`frechet_distance` from features [n, d] and [m, d], without a d x d matrix: faster where n or m is below d.

    With X and Y the centred features over sqrt(n - 1) and sqrt(m - 1), A = X^T X and B = Y^T Y, and
    tr((A B)^(1/2)) is the sum of the singular values of X Y^T [n, m]. Raises ValueError for fewer than 2 vectors.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least 2 vectors, not {min(len(a), len(b))}")
    _warn_of_few(len(a), len(b), a.shape[1])
    a, b = a.double(), b.double()
    mean_a, mean_b = a.mean(0), b.mean(0)
    x, y = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    trace = x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    return float((mean_a - mean_b).square().sum() + trace)


def _warn_of_few(n: int | None, m: int | None, d: int) -> None:
    if min(d + 1 if count is None else count for count in (n, m)) <= d:
        warnings.warn(
            f"a Frechet distance of {_count(n)} and {_count(m)} vectors with {d} components each: so few give a "
            "singular covariance, and the distance is biased upwards by much; compare it only with distances of as "
            "many vectors",
            stacklevel=3,
        )


def _count(n: int | None) -> str:
    return "an unknown number" if n is None else str(n)


def _trace_of_root(a: Tensor, b: Tensor) -> Tensor:
    """tr((A B)^(1/2)): the sum of the singular values of F^T G, for any factors A = F F^T and B = G G^T.

    If A or B is safely regular, F is its Cholesky factor, and the singular values are the roots of the eigenvalues of
    F^T B F, which is fast. Otherwise they are computed directly: their squares would lose those below 1e-8 of the
    largest.
    """
    for regular, other in ((a, b), (b, a)):
        factor, failed = torch.linalg.cholesky_ex(regular)
        pivots = factor.diagonal()
        if not failed and pivots.min() > REGULAR * pivots.max():
            return torch.linalg.eigvalsh(factor.T @ other @ factor).clamp_min(0).sqrt().sum()
    return torch.linalg.svdvals(_factor(a).T @ _factor(b)).sum()


def _factor(covariance: Tensor) -> Tensor:
    """F [d, rank] with F F^T = covariance, directions of zero variance left out."""
    # Components that never vary (dead features of few images) can keep LAPACK's eigh from converging.
    varies = covariance.diagonal() > 0
    try:
        values, inner = torch.linalg.eigh(covariance[varies][:, varies])
    except torch.linalg.LinAlgError:
        # Singular values of a symmetric positive matrix are its eigenvalues, by another algorithm.
        inner, values, _ = torch.linalg.svd(covariance[varies][:, varies])
        values, inner = values.flip(0), inner.flip(1)
    vectors = covariance.new_zeros(len(covariance), inner.shape[1])
    vectors[varies] = inner
    if len(values) == 0:
        return vectors
    keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()
