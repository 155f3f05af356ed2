"""What the stages that train a flow model (teacher and student) have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmvae import config as configs
from dmvae.flow.loss import TimeDistribution, Times, drop_labels, flow_matching_loss
from dmvae.generators import Generator
from dmvae.generators.flow import FlowModelConfig, TransformerConfig
from dmvae.models.velocity import VelocityModel
from dmvae.ranges import Share, TimeMean, TimeShift, TimeSpread
from dmvae.runtime.random import Random, seed_of
from dmvae.training.stage import TrainingConfig

LOSS_BLOCK = 250
"""Latents for which `held_out_loss` draws times and noise together."""


@dataclass(frozen=True, kw_only=True)
class LatentTraining(TrainingConfig):
    """Fields of every stage that trains a network on labelled latents, as a flow or otherwise."""

    label_dropout: Share = 0.1
    """Share of labels replaced by "no label" in training, for guidance."""
    time_distribution: TimeDistribution = "uniform"
    """How a flow model's training times are drawn: uniform, or "logit_normal", the logistic function of a normal number
    (Stable Diffusion 3, arXiv 2403.03206)."""
    time_mean: TimeMean = configs.added(0.0)
    """Mean of that normal number. Times are 0 at noise: below 0 moves them towards noise; SD3 and RAE, whose times are
    1 at noise, write the other sign."""
    time_std: TimeSpread = configs.added(1.0)
    """Its standard deviation."""
    time_shift: TimeShift = configs.added(1.0)
    """Shift of these times towards noise, t / (t + shift (1 - t)); 1 is none. At the same noise level, latents with
    more elements d = C H W are less hidden; RAE takes sqrt(d / 4096) (arXiv 2510.11690), here and in `sample`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.times  # raises ValueError

    @property
    def times(self) -> Times:
        """How training times are drawn."""
        return Times(self.time_distribution, self.time_shift, self.time_mean, self.time_std)


@dataclass(frozen=True, kw_only=True)
class FlowTraining(LatentTraining):
    """Fields of every stage that trains a flow model by flow matching."""

    model: TransformerConfig = field(default_factory=FlowModelConfig)
    """The network."""


def flow_loss(network: VelocityModel, z: Tensor, labels: Tensor, config: FlowTraining, rng: Random) -> Tensor:
    """The flow-matching loss of one update, a scalar. z: latents [n, C, H, W], normalised per channel; labels int64
    [n]."""
    labels = drop_labels(labels, config.label_dropout, network.config.num_classes, rng)
    network.times = config.times
    return network.loss(z, labels, rng)


def as_taught(labels: Tensor, label_dropout: float, null_label: int) -> Tensor:
    """The labels [n] by which a network is asked: "no label" for one that was taught none (`label_dropout: 1`), whose
    other labels stay random."""
    return torch.full_like(labels, null_label) if label_dropout == 1 else labels


def held_out_loss(network: Generator, z: Tensor, labels: Tensor, device: torch.device) -> float:
    """The mean loss on latents z [n, C, H, W], normalised, with labels [n], wherever they lie; of a flow model at one
    time each, uniform whatever it was trained at. Times and noise are always the same."""
    total = 0.0
    # Drawn in blocks of a fixed size, so that neither batch size nor ranks change the figure.
    for start in range(0, len(z), LOSS_BLOCK):
        part, classes = (x[start : start + LOSS_BLOCK].to(device) for x in (z, labels))
        source = torch.Generator().manual_seed(seed_of("generator_loss", start))
        t, noise = torch.rand(len(part), generator=source), torch.randn(part.shape, generator=source)
        if isinstance(network, VelocityModel):
            loss = flow_matching_loss(network, z=part, labels=classes, t=t.to(device), noise=noise.to(device))
        else:
            loss = network.loss(part, classes, Random.alone("generator_loss", start, device=device))
        total += float(loss) * len(part)
    return total / len(z)
