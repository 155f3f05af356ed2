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
    """The coupling P [n, m] of least sum P cost + eps sum P log(n m P), among those whose rows sum to 1 / n and columns
    to 1 / m; and that least value, a scalar, from the dual variables.

    Sinkhorn's iterations in log space, so that a small eps does not underflow; the last one makes the rows exact. For
    eps -> 0 and n = m, P is 1 / n times the permutation of the assignment problem. cost [n, m]; eps is in its units.
    Raises ValueError for eps or iterations that are not above 0.
    """
    require_positive(eps=eps, iterations=iterations)
    f, g = potentials(cost, eps, iterations)
    return ((f[:, None] + g - cost) / eps - math.log(cost.numel())).exp(), f.mean() + g.mean()


def potentials(
    cost: Tensor, eps: float, iterations: int = ITERATIONS, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The dual variables f [n] and g [m] of `plan`: mean f + mean g is its least value.

    Over the first half of the iterations eps falls geometrically from the range of the costs to its value: with a small
    eps from the start, each iteration would change the dual variables by about eps only. With `start`, a g [m] near the
    result, eps has its value from the first iteration.
    """
    n, m = cost.shape
    f, g = cost.new_zeros(n), cost.new_zeros(m)
    first = eps
    if start is None:
        first = max(eps, float(cost.max() - cost.min()))
    else:
        f = -eps * (((start - cost) / eps).logsumexp(1) - math.log(m))
    for i in range(iterations):
        now = eps * (first / eps) ** max(0.0, 1 - 2 * (i + 1) / iterations)
        g = -now * (((f[:, None] - cost) / now).logsumexp(0) - math.log(n))
        f = -now * (((g - cost) / now).logsumexp(1) - math.log(m))
    return f, g


def balanced_assignment(costs: Tensor) -> Tensor:
    """int64 [n], a column for each row of costs [n, m], at most ceil(n / m) rows to a column. Greedy: each row takes
    the cheapest column that has room; rows that would lose most by their second choice go first. Near the optimum where
    the dual variables g of `potentials` are already subtracted from the costs."""
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
    """S(z, y) = OT(z, y) - OT(z, z) / 2 - OT(y, y) / 2 with cost |z - y|^2 / 2 (Feydy et al., arXiv 1810.08278).

    Without the terms OT(z, z) and OT(y, y), latents would shrink towards the means of the samples that they are
    assigned; with them, S is 0 for equal sets and positive for others. Its gradient at z_i is (T_zz(z_i) - T_zy(z_i)) /
    n, where T_zy(z_i) = sum_j P_ij y_j / sum_j P_ij is the mean of the samples that z_i is assigned by the plan P, and
    T_zz(z_i) the same of latents, for the plan of z to itself. eps is relative to the mean of the cost between z and y.
    Raises ValueError for sets without vectors, and for eps or iterations that are not above 0.
    """
    require_vectors(z, y)
    y = y.to(z)
    scale = eps * float(0.5 * squares(z.detach(), y).mean().clamp_min(1e-12))
    require_positive(eps=eps, iterations=iterations)
    return _cost(z, y, scale, iterations) - 0.5 * _cost(z, z, scale, iterations) - 0.5 * _cost(y, y, scale, iterations)


def _cost(a: Tensor, b: Tensor, eps: float, iterations: int) -> Tensor:
    """OT_eps(a, b), whose gradient is that of the cost at the plan (the envelope theorem: potentials are optimal)."""
    cost = 0.5 * squares(a, b)
    with torch.no_grad():
        p, value = plan(cost, eps, iterations)
    moved = (p * cost).sum()
    return value + moved - moved.detach()


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [n, m] of a [n, d] and b [m, d]; rounding below 0 is cut off."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
