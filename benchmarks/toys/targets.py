"""Six distributions in two dimensions, and the starts from which points are moved to them.

Each is a mixture of Gaussians, so that its velocity is known in closed form: a few for those with modes, hundreds
close together along the curves and in the squares.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmvae.references.gaussian_mixture import GaussianMixture, joint_weights
from dmvae.runtime.random import Random


def mixture(centres: Tensor, std: float) -> GaussianMixture:
    """Equal Gaussians around centres [k, 2], as a reference without classes."""
    means = centres.view(-1, 2, 1, 1)
    joint = joint_weights(torch.ones(len(means)), None, 1)
    return GaussianMixture(means, torch.full_like(means, std**2), joint, torch.zeros(2), torch.ones(2))


def even(n: int) -> Tensor:
    """The middles of n equal parts of (0, 1)."""
    return (torch.arange(n) + 0.5) / n


def s_curve() -> GaussianMixture:
    turn = 4 / 3 * math.pi * even(64) + math.pi / 6
    arc = torch.stack([0.5 * turn.cos(), 0.5 + 0.5 * turn.sin()], 1)
    return mixture(1.7 * torch.cat([arc, -arc]), 0.08)


def ring() -> GaussianMixture:
    turn = 2 * math.pi * even(8)
    return mixture(1.4 * torch.stack([turn.cos(), turn.sin()], 1), 0.1)


def grid() -> GaussianMixture:
    side = torch.arange(5) - 2.0
    return mixture(0.7 * torch.cartesian_prod(side, side), 0.05)


def moons() -> GaussianMixture:
    turn = math.pi * even(64)
    upper = torch.stack([turn.cos() - 0.5, 1.5 * (turn.sin() - 0.25)], 1)
    return mixture(1.15 * torch.cat([upper, -upper]), 0.08)


def checkerboard() -> GaussianMixture:
    """Eight of the sixteen squares of a board, each of 6 x 6 Gaussians, which blur its edges."""
    corners = torch.tensor([[i, j] for i in range(4) for j in range(4) if (i + j) % 2 == 0]) - 2.0
    inside = torch.cartesian_prod(even(6), even(6))
    return mixture(0.866 * (corners[:, None] + inside).flatten(0, 1), 0.07)


def swiss_roll() -> GaussianMixture:
    turn = 1.5 * math.pi * (1 + 2 * even(256).sqrt())
    return mixture(torch.stack([turn * turn.cos(), turn * turn.sin()], 1) / (2.25 * math.pi), 0.06)


TOYS = {
    "s-curve": s_curve,
    "ring of 8": ring,
    "grid of 25": grid,
    "two moons": moons,
    "checkerboard": checkerboard,
    "swiss roll": swiss_roll,
}

STARTS: dict[str, tuple[float, float]] = {f"{d:g}": (d, 1.0) for d in (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)}
STARTS |= {f"x {s:g}": (0.0, s) for s in (0.1, 0.3, 3.0, 10.0)}
STARTS["disjoint"] = (0.0, 0.0)
"""Name -> (distance from the toy's centre, spread), in the toy's standard deviations, of a normal cloud. "disjoint":
four tight clouds at the corners of a square, where no toy has anything."""


def begin(start: str, n: int, seed: int) -> Tensor:
    """Points [n, 2, 1, 1]."""
    distance, spread = STARTS[start]
    rng = Random(seed, "start")
    if start == "disjoint":
        corner = torch.tensor([[2.6, 2.6], [-2.6, 2.6], [-2.6, -2.6], [2.6, -2.6]])
        return (corner[torch.arange(n) % 4] + 0.05 * rng.normal(n, 2)).view(n, 2, 1, 1)
    return spread * rng.normal(n, 2, 1, 1) + distance / math.sqrt(2)


def unit(start: str) -> float:
    """How much longer the steps from there are: far points need long ones, to come near within the first turns."""
    distance, spread = STARTS[start]
    return max(1.0, 0.2 * (distance + 3 * (spread - 1)))
