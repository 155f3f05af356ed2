"""Entropic optimal transport: a balanced assignment of latents to samples of the reference (Cuturi 2013).

Shapes: z [n, d], y [m, d]. All rows weigh the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmvae.transport.checks import require_positive, require_vectors

ITERATIONS = 50


def plan(cost: Tensor, eps: float, iterations: int = ITERATIONS) -> tuple[Tensor, Tensor]:
    """The coupling P [n, m] of least sum P cost + eps sum P (log P - 1), rows sum to 1 / n and columns to 1 / m; and
    the cost of the regularised transport.

    Sinkhorn's iterations in log space, so that a small eps does not underflow; the last one makes the rows exact. For
    eps -> 0 and n = m it is 1 / n times the permutation of the assignment problem. eps is in units of the cost. A pair
    of infinite cost is never coupled; every row and column needs one that is not.
    """
    require_positive(eps=eps, iterations=iterations)
    f, g = potentials(cost, eps, iterations)
    return ((f[:, None] + g - cost) / eps - math.log(cost.numel())).exp(), f.mean() + g.mean()


def potentials(
    cost: Tensor, eps: float, iterations: int = ITERATIONS, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The dual variables f [n] and g [m]: sum f / n + sum g / m is the cost of the regularised transport.

    Over the first half of the iterations eps falls geometrically from the range of the costs to its value: with a small
    eps from the start, each iteration would change the potentials by about eps only. With `start`, a g [m] near the
    result, eps has its value from the first iteration.
    """
    n, m = cost.shape
    f, g = cost.new_zeros(n), cost.new_zeros(m)
    first = eps
    if start is None:
        first = max(eps, float(cost.masked_fill(cost.isinf(), -math.inf).max() - cost.min()))
    else:
        f = -eps * (((start - cost) / eps).logsumexp(1) - math.log(m))
    for i in range(iterations):
        now = eps * (first / eps) ** max(0.0, 1 - 2 * (i + 1) / iterations)
        g = -now * (((f[:, None] - cost) / now).logsumexp(0) - math.log(n))
        f = -now * (((g - cost) / now).logsumexp(1) - math.log(m))
    return f, g


def divided(costs: Tensor) -> Tensor:
    """[n], the column of each row of costs [n, m], where every column takes n / m rows, rounded up, at most. Near the
    least sum of costs where these are net of prices (`potentials`): rows choose in turn, those that lose most by a
    second choice first, the cheapest column that has room."""
    n, m = costs.shape
    best = costs.topk(min(2, m), dim=1, largest=False).values
    turn = (best[:, -1] - best[:, 0]).argsort(descending=True, stable=True).tolist()
    choices = costs.argsort(dim=1, stable=True).tolist()
    room, chosen = [-(-n // m)] * m, [0] * n
    for row in turn:
        chosen[row] = next(column for column in choices[row] if room[column])
        room[chosen[row]] -= 1
    return torch.tensor(chosen, device=costs.device)


def sinkhorn_divergence(z: Tensor, y: Tensor, eps: float = 0.05, iterations: int = ITERATIONS) -> Tensor:
    """S(z, y) = OT(z, y) - OT(z, z) / 2 - OT(y, y) / 2 with cost |z - y|^2 / 2 (Feydy et al., arXiv 1810.08278), where
    no vector is assigned to itself.

    Its gradient at z_i is (T_zz(z_i) - T_zy(z_i)) / n, where T_zy(z_i) = sum_j P_ij y_j / sum_j P_ij is the mean of the
    samples that z_i is assigned by the plan P, and T_zz that of the other latents. eps is relative to the mean squared
    distance of z and y.

    The published divergence has the pairs of a vector with itself, at cost 0, in OT(z, z) and OT(y, y): it is 0 for
    equal sets. But samples are not equal sets. In many dimensions each is nearest to itself by far, T_zz(z_i) is about
    z_i while T_zy(z_i) is a mean of strangers nearer the middle, and latents that follow the reference already would
    shrink to 0.3 of its spread. Without these pairs both are means of strangers, and two samples of one distribution
    are about 0 apart, where single values may be negative. It is for new latents in each turn: of one small set that is
    compared whole in every turn, the same few push each other out (docs/results/toys.md).
    """
    require_vectors(z, y, least=2)
    y = y.to(z)
    scale = eps * float(0.5 * squares(z.detach(), y).mean().clamp_min(1e-12))
    require_positive(eps=eps, iterations=iterations)
    among = [_cost(x, x, scale, iterations, same=True) for x in (z, y)]
    return _cost(z, y, scale, iterations) - 0.5 * among[0] - 0.5 * among[1]


def _cost(a: Tensor, b: Tensor, eps: float, iterations: int, same: bool = False) -> Tensor:
    """OT_eps(a, b), whose gradient is that of the cost at the plan (the envelope theorem: potentials are optimal).
    same: b is a, and no vector is assigned to itself."""
    cost = 0.5 * squares(a, b)
    itself = torch.eye(len(a), dtype=torch.bool, device=a.device) if same else None
    with torch.no_grad():
        p, value = plan(cost if itself is None else cost.masked_fill(itself, math.inf), eps, iterations)
    moved = (p * cost).sum()
    return value + moved - moved.detach()


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [n, m]."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
