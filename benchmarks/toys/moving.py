"""How points are moved to a toy by an objective of the matching stage, many runs at once.

Points [g n, 2, 1, 1] are the parameters themselves: no image, no encoder. They belong to g runs, n points each, whose
number is their label. Networks have weights of their own for each run. So one step moves all of them, and what is
one number of Adam's in one run is no other run's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.toys.targets import begin, unit
from dmvae.matching import Context, Matching
from dmvae.matching.adversarial import Adversarial
from dmvae.matching.between import BetweenSamples
from dmvae.matching.dmd import DMD, WithRatio
from dmvae.matching.drift import Drift
from dmvae.matching.energy import Energy
from dmvae.matching.flow_loss import LossDifference, StudentLoss, TeacherLoss
from dmvae.matching.mmd import MMD
from dmvae.matching.moments import Moments
from dmvae.matching.sinkhorn import Sinkhorn
from dmvae.matching.transport import Transport
from dmvae.matching.velocities import ByVelocities
from dmvae.matching.velocity_gap import VelocityGap
from dmvae.references.gaussian_mixture import GaussianMixture
from dmvae.runtime.random import Random
from dmvae.transport.sliced import wasserstein_1d

PAPER: dict[str, Matching] = {
    "dmd": DMD(guidance=1.0),
    "loss difference": LossDifference(),
    "teacher's loss": TeacherLoss(),
    "teacher's loss, target held": TeacherLoss(stop="target"),
    "teacher's loss, network held": TeacherLoss(stop="network"),
    "student's loss": StudentLoss(),
    "student's loss, target held": StudentLoss(stop="target"),
    "student's loss, network held": StudentLoss(stop="network"),
    "velocity gap": VelocityGap(),
    "velocity gap, teacher held": VelocityGap(stop="teacher"),
    "velocity gap, student held": VelocityGap(stop="student"),
}
"""The eleven of the paper's figure 3."""
WHOLE = {"views": ("whole",), "samples": 128}
BEYOND: dict[str, Matching] = {
    "loss difference, target held": LossDifference(stop="target"),
    "dmd, Jensen-Shannon": DMD(guidance=1.0, divergence="jensen_shannon"),
    "dmd, forward KL": DMD(guidance=1.0, divergence="forward_kl"),
    "adversarial": Adversarial(),
    "transport": Transport(**WHOLE),  # type: ignore[arg-type]
    "sinkhorn": Sinkhorn(**WHOLE, iterations=10),  # type: ignore[arg-type]
    "energy": Energy(**WHOLE),  # type: ignore[arg-type]
    "mmd": MMD(**WHOLE),  # type: ignore[arg-type]
    "drift": Drift(**WHOLE),  # type: ignore[arg-type]
    "moments": Moments(**WHOLE),  # type: ignore[arg-type]
}
OBJECTIVES = PAPER | BEYOND

WARMUP, STUDENT_STEPS, WIDTH = 50, 2, 48


@dataclass(frozen=True)
class Run:
    """A start and a seed of one toy."""

    toy: Callable[[], GaussianMixture]
    start: str
    seed: int


class Toys:
    """The runs' toys as one reference, whose labels are the runs' numbers."""

    mean, std = torch.zeros(2), torch.ones(2)

    def __init__(self, toys: list[GaussianMixture]) -> None:
        self.toys = toys

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        each = n // len(self.toys)
        y = torch.cat([toy.sample(each, rng)[0] for toy in self.toys])
        return y, torch.arange(len(self.toys)).repeat_interleave(each)

    def velocity(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        each, begun, found = len(z_t) // len(self.toys), 0, []
        for toy, some in groupby(self.toys):  # those that follow each other together
            part = slice(begun, begun := begun + each * len(list(some)))
            found.append(toy.velocity(z_t[part], t[part], torch.ones_like(labels[part])))
        return torch.cat(found)


class Grouped(nn.Module):
    """A perceptron for each run: [g n, channels, 1, 1] -> [g n, outputs]."""

    def __init__(self, runs: int, channels: int, outputs: int) -> None:
        super().__init__()
        sizes = [channels, WIDTH, WIDTH, WIDTH, outputs]
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(torch.randn(runs, a, b) / math.sqrt(a) for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(runs, 1, b) for _, b in pairs)
        nn.init.zeros_(self.weights[-1])

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1).unflatten(0, (len(self.weights[0]), -1))
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, F.silu(h) if i else h, weight)
        return h.flatten(0, 1)


class Student(nn.Module):
    def __init__(self, runs: int) -> None:
        super().__init__()
        self.net = Grouped(runs, 8, 2)

    def forward(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        waves = torch.stack([t, *(f(math.pi * k * t) for k in (1, 2) for f in (torch.sin, torch.cos)), 1 - t], 1)
        return self.net(torch.cat([z_t.flatten(1), waves], 1)).view_as(z_t)


class Critic(nn.Module):
    def __init__(self, runs: int, channels: int) -> None:
        super().__init__()
        self.net = Grouped(runs, channels, 1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.net(z).squeeze(1)


def new_student(objective: Matching, runs: int) -> nn.Module | None:
    """What stands for the stage's networks in two dimensions."""
    if isinstance(objective, Adversarial):
        return Critic(runs, 2)
    if not objective.has_student:
        return None
    student = Student(runs)
    return WithRatio(student, Critic(runs, 3)) if objective.needs_reference else student


class Moved:
    """An objective at work on runs that share their length."""

    def __init__(self, name: str, runs: list[Run], n: int) -> None:
        self.name, self.runs, self.n, self.objective = name, runs, n, OBJECTIVES[name]
        torch.manual_seed(runs[0].seed)
        made: dict[object, GaussianMixture] = {}
        self.reference = Toys([made.setdefault(run.toy, run.toy()) for run in runs])
        self.start = torch.cat([begin(run.start, n, run.seed) for run in runs])
        self.labels = torch.arange(len(runs)).repeat_interleave(n)
        self.units = torch.tensor([unit(run.start) for run in runs]).repeat_interleave(n).view(-1, 1, 1, 1)
        self.student = new_student(self.objective, len(runs))
        if self.student is not None:
            self.learns = torch.optim.Adam(self.student.parameters(), lr=3e-3, betas=(0.5, 0.95))
            for step in range(WARMUP):
                self.learn(self.start, self.context("warmup", step))

    def context(self, *key: object, progress: float = 0.0) -> Context:
        rng = Random(self.runs[0].seed, self.name, *key)
        return Context(rng, len(self.runs), progress, self.reference, label_dropout=0.0)

    def learn(self, z: Tensor, context: Context) -> None:
        loss, _ = self.objective.student_loss(self.student, z, self.labels, context)
        self.learns.zero_grad()
        loss.backward()
        self.learns.step()

    def end(self, turns: int) -> Tensor:
        """The points after so many turns, [g, n, 2]."""
        moving = (self.start / self.units).requires_grad_()
        moves = torch.optim.Adam([moving], betas=(0.5, 0.95))
        for turn in range(turns):
            moves.param_groups[0]["lr"] = 0.1 * (1 - turn / turns)
            for k in range(STUDENT_STEPS if self.student is not None else 0):
                self.learn((moving * self.units).detach(), self.context(turn, k))
            loss = self.loss(self.objective, moving * self.units, self.context(turn, progress=turn / turns))
            moves.zero_grad()
            loss.backward()
            moves.step()
        return (moving * self.units).detach().view(len(self.runs), self.n, 2)

    def loss(self, objective: Matching, z: Tensor, context: Context) -> Tensor:
        if not isinstance(objective, BetweenSamples):
            return objective.loss(z, self.labels, self.reference.velocity, self.student, context)[0]
        total = z.new_zeros(())  # sets are compared, so each run is on its own
        for part, toy in zip(z.split(self.n), self.reference.toys, strict=True):
            total = total + objective.loss(part, self.labels[: self.n], context=replace(context, reference=toy))[0]
        return total

    def field(self, time: float, draws: int = 8) -> Tensor:
        """Where the start's points are pulled at a time, the mean over noises, [g, n, 2]."""
        objective = self.objective
        if isinstance(objective, ByVelocities):
            objective = replace(objective, time_range=(time - 0.01, time + 0.01))
        z, total = self.start.clone().requires_grad_(), torch.zeros_like(self.start)
        for draw in range(draws):
            total -= torch.autograd.grad(self.loss(objective, z, self.context("field", draw)), z)[0]
        return total.view(len(self.runs), self.n, 2)


@dataclass(frozen=True)
class Result:
    """How near points ended to their toy."""

    distance: float
    """Sliced 2-Wasserstein, a multiple of what two samples of the toy have; infinite where points are not finite."""
    coverage: float
    """Share of the toy's samples with a point as near as 95 in 100 have one of another sample."""
    spread: float
    """Standard deviation over the toy's."""


def judge(points: Tensor, toy: GaussianMixture, seed: int) -> Result:
    """points [n, 2]."""
    if not points.isfinite().all():
        return Result(math.inf, 0.0, math.inf)
    y, other = (toy.sample(len(points), Random(seed, part))[0].flatten(1) for part in ("real", "chance"))
    turn = torch.linspace(0, math.pi, 65)[:-1]
    u = torch.stack([turn.cos(), turn.sin()], 1)
    far, chance = (wasserstein_1d(u @ a.T, u @ y.T).mean().clamp_min(0).sqrt() for a in (points, other))
    radius = torch.cdist(y, other).min(1).values.quantile(0.95)
    covered = (torch.cdist(y, points).min(1).values <= radius).float().mean()
    spread = (points.var(0).sum() / y.var(0).sum()).sqrt()
    return Result(float(far / chance), float(covered), float(spread))
