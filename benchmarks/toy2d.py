"""Six distributions in two dimensions, of unit scale, to match where it can be seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def s_curve(n: int, rng: torch.Generator) -> Tensor:
    turn = 4 / 3 * math.pi * torch.rand(n, generator=rng) + math.pi / 6
    sign = 1 - 2.0 * torch.randint(2, (n,), generator=rng)
    x = sign[:, None] * torch.stack([0.5 * torch.cos(turn), 0.5 + 0.5 * torch.sin(turn)], 1)
    return 1.7 * x + 0.08 * torch.randn(n, 2, generator=rng)


def ring(n: int, rng: torch.Generator) -> Tensor:
    """Eight Gaussians on a circle."""
    turn = math.pi / 4 * torch.randint(8, (n,), generator=rng)
    return 1.4 * torch.stack([turn.cos(), turn.sin()], 1) + 0.1 * torch.randn(n, 2, generator=rng)


def grid(n: int, rng: torch.Generator) -> Tensor:
    """Five by five Gaussians."""
    cell = torch.randint(5, (n, 2), generator=rng) - 2.0
    return 0.7 * cell + 0.05 * torch.randn(n, 2, generator=rng)


def moons(n: int, rng: torch.Generator) -> Tensor:
    turn = math.pi * torch.rand(n, generator=rng)
    upper = torch.stack([turn.cos() - 0.5, turn.sin() - 0.25], 1)
    sign = 1 - 2.0 * torch.randint(2, (n, 1), generator=rng)
    return 1.15 * sign * upper * torch.tensor([1.0, 1.5]) + 0.08 * torch.randn(n, 2, generator=rng)


def checkerboard(n: int, rng: torch.Generator) -> Tensor:
    """Eight of the sixteen squares of a board of side 4, scaled."""
    column = torch.randint(4, (n,), generator=rng)
    row = 2 * torch.randint(2, (n,), generator=rng) + column % 2
    corner = torch.stack([column, row], 1) - 2.0
    return 0.866 * (corner + torch.rand(n, 2, generator=rng))


def swiss_roll(n: int, rng: torch.Generator) -> Tensor:
    turn = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=rng).sqrt())
    x = torch.stack([turn * turn.cos(), turn * turn.sin()], 1) / (4.5 * math.pi) * 2
    return x + 0.06 * torch.randn(n, 2, generator=rng)


TOYS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "s-curve": s_curve,
    "ring of 8": ring,
    "grid of 25": grid,
    "two moons": moons,
    "checkerboard": checkerboard,
    "swiss roll": swiss_roll,
}
