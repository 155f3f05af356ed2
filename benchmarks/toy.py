"""Matching in two dimensions, where it can be seen: points are moved until they have the distribution of a reference.

    python -m benchmarks.toy docs/results/toy/points.png [--steps 1000] [--seed 0]

Points [n, 2, 1, 1] stand for latents and are parameters themselves; no image, no encoder. The reference is an S of
Gaussians with two classes, upper and lower half, whose velocity is known in closed form. Objectives and networks are
those of the matching stage. Prints the sliced Wasserstein distance at the end, in units of the reference's standard
deviation, and the spread over the reference's. About a minute for each objective on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from benchmarks.tables import header, line
from dmvae.evaluation.latents import sliced_distance
from dmvae.flow.path import expand
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import Context
from dmvae.matching.adversarial import Adversarial
from dmvae.matching.dmd import DMD
from dmvae.references.gaussian_mixture import GaussianMixture
from dmvae.references.mixture import joint_weights
from dmvae.runtime.random import Random

POINTS, CLASSES, EVERY = 1024, 2, 2
ALONE = "dmd without a student"
METHODS = {
    "dmd": DMD(guidance=1.0),
    "dmd, guidance 3": DMD(guidance=3.0),
    ALONE: DMD(guidance=1.0),
    "adversarial": Adversarial(width=64, depth=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the picture, .png")
    parser.add_argument(
        "--steps", type=int, default=1000, help="of the student; points move in every second (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of starts and networks (default: %(default)s)")
    known = parser.parse_args()
    reference = letter_s()
    target, target_labels = reference.sample(4096, Random(known.seed, "target"))
    start, labels = beginning(known.seed)
    clouds = {"start": start} | {
        name: matched(name, reference, start, labels, known.steps, known.seed) for name in METHODS
    }
    print(header(["points", "distance to the reference, by class", "spread"]))
    for name, points in clouds.items():
        pairs = [(points[labels == c], target[target_labels == c]) for c in range(CLASSES)]
        distance = sum(sliced_distance(a, b) for a, b in pairs) / CLASSES
        spread = sum(float((a.var(0).sum() / b.var(0).sum()).sqrt()) for a, b in pairs) / CLASSES
        print(line([name, f"{distance:.3f}", f"{spread:.2f}"]))
    known.file.parent.mkdir(parents=True, exist_ok=True)
    draw(clouds, labels, target, known.file)


def letter_s(components: int = 32, std: float = 0.12) -> GaussianMixture:
    """Gaussians along two arcs, scaled to unit variance about 0; the upper half is class 0."""
    turn = torch.linspace(0, 4 / 3 * math.pi, components // 2)
    upper = torch.stack([0.5 * torch.cos(turn + math.pi / 6), 0.5 + 0.5 * torch.sin(turn + math.pi / 6)], 1)
    centres = torch.cat([upper, -upper])
    means = (centres / centres.std(0).mean()).view(-1, 2, 1, 1)
    labels = torch.arange(components) // (components // 2)
    joint = joint_weights(torch.ones(components), labels, CLASSES)
    return GaussianMixture(means, torch.full_like(means, std**2), joint, torch.zeros(2), torch.ones(2))


def beginning(seed: int) -> tuple[Tensor, Tensor]:
    """(points [n, 2, 1, 1], uniform in a square, labels [n])."""
    rng = Random(seed, "start")
    return 4 * rng.uniform(POINTS, 2, 1, 1) - 2, rng.integers(CLASSES, POINTS)


def matched(name: str, reference: GaussianMixture, start: Tensor, labels: Tensor, steps: int, seed: int) -> Tensor:
    """The points after `steps` turns of the student and half as many of their own."""
    torch.manual_seed(seed)
    objective, closed = METHODS[name], reference.velocity
    student = objective.new_student((2, 1, 1), CLASSES, closed, FlowModelConfig(width=64, depth=2, heads=2))
    points = start.clone().requires_grad_()
    moves = torch.optim.Adam([points], lr=0.02, betas=(0.5, 0.95))
    assert student is not None
    learns = torch.optim.Adam(student.parameters(), lr=2e-3)
    for step in track(range(steps), name):
        rng = Random(seed, name, step)
        context = Context(rng, CLASSES, progress=step / steps, reference=reference)
        if name != ALONE:
            learned, _ = objective.student_loss(student, points.detach(), labels, context)
            descend(learns, learned)
        if step % EVERY == 0:
            asked = alone(points.detach()) if name == ALONE else student
            loss, _ = objective.loss(points, labels, closed, asked, context)
            for group in moves.param_groups:
                group["lr"] = 0.02 * (1 - step / steps)
            descend(moves, loss)
    return points.detach()


def alone(z: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The velocity towards each point itself: a student that knows nothing of the others."""
    return lambda z_t, t, labels: (z - z_t) / expand(1 - t, z_t)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def draw(clouds: dict[str, Tensor], labels: Tensor, target: Tensor, file: Path) -> None:
    figure = Figure(figsize=(3 * len(clouds), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, points) in zip(figure.subplots(1, len(clouds)), clouds.items(), strict=True):
        axes.scatter(*target.flatten(1).T, s=2, color="0.8", linewidths=0)
        for label, colour in enumerate(("#1f6fb4", "#d95f02")):
            axes.scatter(*points[labels == label].flatten(1).T, s=4, color=colour, linewidths=0)
        axes.set(title=name, xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
    figure.savefig(file, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
