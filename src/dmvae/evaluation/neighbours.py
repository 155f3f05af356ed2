"""Nearest neighbours, by comparing all pairs, and the intrinsic dimension that follows from them.

Distances are float32's: points that are nearer to each other than 1e-4 of the spread of all may change places.

Shapes: n queries, m points, d components, k neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.evaluation.rows import by_rows

CHUNK = 512
"""Rows of the distance matrix at a time."""


def nearest(
    queries: Tensor, points: Tensor | None = None, k: int = 1, cosine: bool = False, *, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Distances [n, k] of the k nearest points [m, d] to each query [n, d], ascending, and their indices int64 [n, k].

    Without `points`, neighbours are sought among the queries, except the query itself. Distances are Euclidean, with
    `cosine` between vectors scaled to length 1, so that the angle decides. On the vectors' device.
    shared: all ranks call, with the same vectors, and divide the queries among them.
    Raises ValueError when there are fewer than k points.
    """
    others = points is not None
    x, y = queries.flatten(1), (points if points is not None else queries).flatten(1)
    if len(y) - (not others) < k:
        raise ValueError(f"{k} neighbours are sought among {len(y) - (not others)} vectors: use a smaller k")
    # Distances are computed from products, which lose digits far from the origin.
    x, y = (F.normalize(x, dim=1), F.normalize(y, dim=1)) if cosine else (x - y.mean(0), y - y.mean(0))
    squares = y.square().sum(1)

    def search(chosen: slice) -> tuple[Tensor, Tensor]:
        rows = x[chosen]
        apart = torch.addmm(squares, rows, y.T, alpha=-2)  # the row's own square does not change the order
        if not others:
            apart[:, chosen.start :].fill_diagonal_(torch.inf)
        index = apart.topk(k, largest=False).indices
        # Small distances still have few digits, so they are computed again from the differences: one neighbour of each
        # at a time, as wide vectors are.
        exact, order = torch.stack([(rows - y[column]).norm(dim=-1) for column in index.T], 1).sort(1)
        return exact, index.gather(1, order)

    distances, indices = by_rows(search, x, CHUNK, shared=shared)
    return distances, indices


def intrinsic_dimension(z: Tensor, k: int = 20) -> float:
    """Maximum-likelihood estimate of the dimension of the manifold that vectors, or latents, z [n, ...] lie on.

        1 / dimension = mean over i and j < k of log(T_k(i) / T_j(i)),    T_j(i) the distance to the j-th neighbour

    Levina & Bickel 2004, averaged as MacKay & Ghahramani correct it; with k = 2 it is TwoNN (Facco et al. 2017) in
    its maximum-likelihood form: the most local, and the noisiest. Large dimensions are underestimated, more so
    with fewer vectors: compare only numbers of equally many vectors and equal k. Copies of a vector count once. With at
    most k different vectors, all others are neighbours; with fewer than three, the result is 0. Raises ValueError for
    k < 2.
    """
    if k < 2:
        raise ValueError(f"the dimension is taken of ratios of distances: k is {k}, use 2 or more")
    x = z.flatten(1).float().unique(dim=0)
    if len(x) < 3:
        return 0.0
    distances, _ = nearest(x, k=min(k, len(x) - 1))
    logs = distances.double().log()
    return float(1 / (logs[:, -1:] - logs[:, :-1]).mean())
