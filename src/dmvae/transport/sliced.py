"""Sliced Wasserstein distance between two sets of vectors, of any sizes.

Shapes: z [n, d], y [m, d]; directions [s, d], unit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dmvae.runtime.transfer import covariance
from dmvae.transport.checks import require_vectors

Along = Literal["random", "reference", "gap", "principal"]
MIXED: tuple[Along, ...] = ("random", "reference", "gap")


def sliced_wasserstein(
    z: Tensor, y: Tensor, rng: torch.Generator, slices: int = 256, along: Sequence[Along] = MIXED
) -> Tensor:
    """Mean over directions u of W2^2(u . z, u . y), a scalar: the square of the sliced Wasserstein distance.

    `along` are kinds of `directions`, in equal shares. Directions made of samples use a random eighth of y and, for
    "gap", of z. That eighth is then not compared: a sample lies far out along a direction made from itself, which would
    look like a difference. Raises ValueError for sets of fewer than 2 vectors, and for fewer slices than kinds.
    """
    require_vectors(z, y, least=2)
    whole = y.to(z)
    y, seen_y = _hold_out(whole, rng, bool(set(along) & {"reference", "gap"}))
    z, seen_z = _hold_out(z, rng, "gap" in along)
    u = directions(seen_z.detach(), seen_y, rng, slices, along, whole)
    return wasserstein_1d(u @ z.T, u @ y.T).mean()


def _hold_out(x: Tensor, rng: torch.Generator, some: bool) -> tuple[Tensor, Tensor]:
    """(x without a random eighth, that eighth); (x, x) unless `some`."""
    if not some:
        return x, x
    order = torch.randperm(len(x), generator=rng, device=rng.device).to(x.device)
    count = -(-len(x) // 8)
    return x[order[count:]], x[order[:count]]


def wasserstein_1d(a: Tensor, b: Tensor) -> Tensor:
    """[s], W2^2 of each row of a [s, n] and the same row of b [s, m], exactly, for any n and m: the integral over p
    from 0 to 1 of (Q_a(p) - Q_b(p))^2, Q the quantile functions.

    Q_a is a_(i), the i-th smallest, on ((i - 1) / n, i / n). With c_i the mean of Q_b there, the integral is
    mean (a_(i) - c_i)^2 + mean b^2 - mean c^2, and its gradient at a_(i) is (2 / n) (a_(i) - c_i).
    """
    a, b = a.sort(1).values, b.sort(1).values
    c = b if a.shape == b.shape else _quantile_means(b, a.shape[1])
    return (a - c).square().mean(1) + b.square().mean(1) - c.square().mean(1)


def _quantile_means(b: Tensor, n: int) -> Tensor:
    """Means of the quantile function of ascending rows b [s, m] over n intervals of equal width: [s, n]."""
    m = b.shape[1]
    centre = b.mean(1, keepdim=True)  # sums of centred values keep their digits
    total = F.pad((b - centre).double().cumsum(1), (1, 0))
    ends = torch.arange(n + 1, dtype=torch.float64, device=b.device) * m / n
    below = ends.floor().long().clamp_max(m - 1)
    integral = total[:, below] + (ends - below) * (total[:, below + 1] - total[:, below])
    return centre + (integral.diff(dim=1) * n / m).to(b.dtype)


def directions(
    z: Tensor, y: Tensor, rng: torch.Generator, slices: int, along: Sequence[Along] = MIXED, whole: Tensor | None = None
) -> Tensor:
    """Unit vectors [slices, d], in equal shares of the kinds:

    random      uniform on the sphere: every direction counts, but a single one for little where d is large
    reference   from one vector of y to another: where the reference varies, above all between its modes
    gap         from a vector of z to one of y: where the two differ
    principal   eigenvectors of a covariance, drawn with probability proportional to their variance: of `whole` [k, d],
                of which y may be a small part; else of y

    Raises ValueError for an unknown kind, and for fewer slices than kinds.
    """
    if slices < len(along) or not along:
        raise ValueError(
            f"slices is {slices} for {len(along)} kinds of directions; give at least one slice to one kind"
        )
    counts = [slices // len(along) + (i < slices % len(along)) for i in range(len(along))]
    whole = y if whole is None else whole
    parts = [
        _draw(kind, z, whole if kind == "principal" else y, rng, count)
        for kind, count in zip(along, counts, strict=True)
    ]
    return F.normalize(torch.cat(parts), dim=1)


def _draw(kind: Along, z: Tensor, y: Tensor, rng: torch.Generator, count: int) -> Tensor:
    noise = torch.randn(count, y.shape[1], generator=rng, device=rng.device).to(y)
    if kind == "random":
        return noise
    if kind == "principal":
        values, vectors = torch.linalg.eigh(covariance(y))
        chosen = torch.multinomial(values.clamp_min(0).to(rng.device) + 1e-12, count, True, generator=rng)
        return vectors.T[chosen.to(y.device)]
    if kind not in ("reference", "gap"):
        raise ValueError(f"along: there is no kind {kind!r} of directions; choose of random, reference, gap, principal")
    first = z if kind == "gap" else y
    difference = y[_pick(y, count, rng)] - first[_pick(first, count, rng)]
    return difference + 1e-6 * noise  # the same sample twice has no direction of its own


def _pick(x: Tensor, count: int, rng: torch.Generator) -> Tensor:
    return torch.randint(len(x), (count,), generator=rng, device=rng.device).to(x.device)
