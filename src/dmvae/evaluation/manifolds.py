"""How two sets of features lie in one another: precision, recall, density, coverage, agreement, memorisation.

Shapes: real features [n, d], fake ones [m, d], float.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmvae.evaluation.neighbours import nearest
from dmvae.evaluation.rows import by_rows
from dmvae.runtime import distributed

NEIGHBOURS = 5
"""k of all of them."""
FEW = 20 * NEIGHBOURS
"""Of fewer points a ball holds more than a twentieth of its set, and so it reaches across what parts two sets. From 100
on the figures of two Gaussians are those of thousands, but for their chance (tests/evaluation/test_measure.py)."""
CHUNK = 256
"""Rows of a distance matrix at a time."""
PIECE = 65536
"""Training images at a time: those of a large data set would not fit a GPU beside the networks."""


def manifold_values(real: Tensor, fake: Tensor, k: int = 5, *, shared: bool = False) -> dict[str, Tensor]:
    """How the manifolds of two sets of features [n, d] and [m, d] overlap (arXiv 1904.06991, 2002.09797), float64: of
    each fake point [m] for precision and density, of each real point [n] for recall and coverage.

    The manifold of a set is the union of balls about its points, each reaching its k-th nearest neighbour in the set.

        precision   whether a fake point lies inside the real manifold
        recall      whether a real point lies inside the fake manifold
        density     number of real balls that a fake point lies in, divided by k
        coverage    whether a real ball holds a fake point

    On the features' device. shared: all ranks call, with the same features, and divide the distances among them.
    Raises ValueError where a set has no more than k points.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"sets of {len(real)} and {len(fake)} features are too small for {k} neighbours")
    centre = real.mean(0)  # distances are computed through inner products, which lose digits far from the origin
    real, fake = real - centre, fake - centre
    real_radius, fake_radius = _radii(real, k, shared), _radii(fake, k, shared)
    in_real = torch.zeros(len(fake), dtype=torch.long, device=real.device)

    def overlap(rows: slice) -> tuple[Tensor, Tensor]:
        distance = torch.cdist(real[rows], fake)
        in_ball = distance <= real_radius[rows, None]
        in_real.add_(in_ball.sum(0))
        return (distance <= fake_radius).any(1).double(), in_ball.any(1).double()

    recalled, covered = by_rows(overlap, real, CHUNK, shared=shared)
    if shared:
        in_real = distributed.total(in_real)
    return {
        "precision": (in_real > 0).double(),
        "recall": recalled,
        "density": in_real.double() / k,
        "coverage": covered,
    }


def agreement_values(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, k: int = 5, *, shared: bool = False
) -> Tensor:
    """Of each sample the share of its k nearest real images that are of the class it was asked to be, float64 [m].

    Frechet distance, precision and coverage are blind to labels: a generator that draws good boots for bags has them
    all. Labels int64 [n] and [m], on whose device the result is. shared: as in `manifold_values`. Raises ValueError
    where there are fewer than k real images.
    """
    neighbours = nearest(fake, real, k, shared=shared)[1].to(real_labels.device)
    return (real_labels[neighbours] == fake_labels[:, None]).double().mean(1)


def memorisation_values(train: Tensor, test: Tensor, fake: Tensor, *, shared: bool = False) -> Tensor:
    """How much nearer to the training images [t, d] samples [m, d] lie than test images [n, d] do: of each sample the
    share of test images whose nearest training image is further than its own, ties counted half, float64 [m].

    Their mean is 0.5 where samples are as new as test images are, 1 where every one is a copy of a training image (the
    test statistic of arXiv 2004.05675). On the device of test and fake features; those of the training images may be
    elsewhere. shared: as in `manifold_values`.
    """
    of_test, of_fake = (_to_nearest(x, train, shared) for x in (test, fake))
    ranked = of_test.sort().values
    nearer, no_further = (torch.searchsorted(ranked, of_fake, right=ties) for ties in (False, True))
    return (len(ranked) - (nearer + no_further).double() / 2) / len(ranked)


def _to_nearest(x: Tensor, among: Tensor, shared: bool) -> Tensor:
    """Distance [n] of each point of x to the nearest of `among`, which may be on another device."""
    pieces = [nearest(x, piece.to(x.device), shared=shared)[0][:, 0] for piece in among.split(PIECE)]
    return torch.stack(pieces).min(0).values


def _radii(x: Tensor, k: int, shared: bool) -> Tensor:
    """Distance [n] of each point to its k-th nearest neighbour; the point itself is the 0-th."""
    (radii,) = by_rows(lambda rows: [torch.cdist(x[rows], x).kthvalue(k + 1, 1).values], x, CHUNK, shared=shared)
    return radii
