"""Six distributions in two dimensions, and how near each objective takes points to them, from near and far.

    python -m benchmarks.toy2d [PICTURE] [--objectives transport energy ...] [--starts 0 5 20] [--seeds 5]

512 points start as a normal cloud at a distance of so many standard deviations; distances at the end are sliced
Wasserstein, as multiples of what two samples of the target have: 1 is arrival.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dmvae.matching import Context, Matching
from dmvae.matching.between import BetweenSamples
from dmvae.registry import find, names
from dmvae.runtime.random import Random
from dmvae.transport.sliced import wasserstein_1d


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

POINTS = 512


class Toy:
    """A toy as a reference whose labels mean nothing."""

    mean, std, velocity = torch.zeros(2), torch.ones(2), None

    def __init__(self, draw: Callable[[int, torch.Generator], Tensor]) -> None:
        self.draw = draw

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        return self.draw(n, rng).view(n, 2, 1, 1), torch.zeros(n, dtype=torch.int64)


def matched(name: str, toy: Toy, start: float, steps: int, seed: int) -> tuple[Tensor, float]:
    """(points at the end, their distance to the toy as a multiple of chance)."""
    objective = find(Matching, name)(views=("whole",))
    rng = Random(seed, "start")
    points = rng.normal(POINTS, 2, 1, 1)
    points[:, 0] += start
    points.requires_grad_()
    optimizer = torch.optim.Adam([points], betas=(0.5, 0.95))
    labels = torch.zeros(POINTS, dtype=torch.int64)
    for step in range(steps):
        for group in optimizer.param_groups:  # far points need long steps, arrived ones short ones
            group["lr"] = max(0.1, 0.02 * start) * (1 - step / steps)
        context = Context(Random(seed, name, step), 1, progress=step / steps, reference=toy)
        loss, _ = objective.loss(points, labels, context=context)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = points.detach()
    return end, distance(end.flatten(1), toy, seed)


def distance(x: Tensor, toy: Toy, seed: int) -> float:
    y, other = (toy.sample(len(x), Random(seed, part))[0].flatten(1) for part in ("real", "chance"))
    turn = torch.linspace(0, math.pi, 129)[:-1]
    u = torch.stack([turn.cos(), turn.sin()], 1)
    far, chance = (wasserstein_1d(u @ a.T, u @ y.T).mean().clamp_min(0).sqrt() for a in (x, other))
    return float(far / chance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="a picture of the points, of the first seed and start")
    known = [name for name in names(Matching) if issubclass(find(Matching, name), BetweenSamples)]
    parser.add_argument("--objectives", nargs="+", choices=known, default=[n for n in known if n != "normality"])
    parser.add_argument("--starts", nargs="+", type=float, default=[0.0, 5.0, 20.0], metavar="DISTANCE")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args()
    print(f"| objective | start | {' | '.join(TOYS)} |\n{'| --- ' * (len(TOYS) + 2)}|")
    clouds: dict[str, list[Tensor]] = {}
    for name in asked.objectives:
        for start in asked.starts:
            row = []
            for draw in TOYS.values():
                ends = [matched(name, Toy(draw), start, asked.steps, seed) for seed in range(asked.seeds)]
                values = [value for _, value in ends]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                row.append(f"{statistics.fmean(values):.2f}{spread}")
                if start == asked.starts[0]:
                    clouds.setdefault(name, []).append(ends[0][0].flatten(1))
            print(f"| {name} | {start:g} | {' | '.join(row)} |", flush=True)
    if asked.file is not None:
        draw_panels(clouds, asked.file)


def draw_panels(clouds: dict[str, list[Tensor]], file: Path) -> None:
    """A row for each objective, a column for each toy, whose samples lie grey behind the points."""
    figure = Figure(figsize=(2 * len(TOYS), 2 * len(clouds)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(clouds), len(TOYS), squeeze=False)
    for axes, (name, ends) in zip(panels, clouds.items(), strict=True):
        for panel, (toy, draw), points in zip(axes, TOYS.items(), ends, strict=True):
            target = draw(2000, torch.Generator().manual_seed(0))
            panel.scatter(*target.T, s=1, color="0.8", linewidths=0)
            panel.scatter(*points.T, s=2, color="#d84f4f", linewidths=0)
            panel.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal", title=f"{name}: {toy}")
            panel.title.set_fontsize(7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
