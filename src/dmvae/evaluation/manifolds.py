"""How two sets of features overlap: precision, recall, density, coverage, agreement, memorisation.

Shapes: real features [n, d], fake ones [m, d], float.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmvae.evaluation.neighbours import nearest
from dmvae.evaluation.rows import by_rows
from dmvae.runtime import distributed

NEIGHBOURS = 5
"""k, the number of neighbours, of all these figures."""
FEW = 20 * NEIGHBOURS
"""With fewer points, a ball holds more than a twentieth of its set, and so reaches across gaps between two sets. With
100 or more, two Gaussians' figures agree with those of thousands, up to noise (tests/evaluation/test_measure.py)."""
CHUNK = 256
"""Rows of a distance matrix at a time."""
PIECE = 65536
"""Training images at a time: all of a large data set's features would not fit on a GPU beside the networks."""


def manifold_values(real: Tensor, fake: Tensor, k: int = 5, *, shared: bool = False) -> dict[str, Tensor]:
    """How the manifolds of two sets of features [n, d] and [m, d] overlap (arXiv 1904.06991, 2002.09797): float64 [m],
    one for each fake point, for precision and density; [n], one for each real point, for recall and coverage.

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
    """For each sample, the share of its k nearest real images that are of the class that was asked for, float64 [m].

    Frechet distance, precision and coverage ignore labels: a generator that draws good boots when asked for bags scores
    well in all of them. Labels int64 [n] and [m]; the result is on their device. shared: as in `manifold_values`.
    Raises ValueError where there are fewer than k real images.
    """
    neighbours = nearest(fake, real, k, shared=shared)[1].to(real_labels.device)
    return (real_labels[neighbours] == fake_labels[:, None]).double().mean(1)


def memorisation_values(train: Tensor, test: Tensor, fake: Tensor, *, shared: bool = False) -> Tensor:
    """How much nearer samples [m, d] lie to the training images [t, d] than test images [n, d] do: for each sample, the
    share of test images whose nearest training image is further away than the sample's, ties counted half, float64 [m].

    The mean is 0.5 if samples are as new as test images, and 1 if every sample is a copy of a training image (the test
    statistic of arXiv 2004.05675). Computed on the device of test and fake features; training features may be
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
