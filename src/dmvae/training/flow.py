"""What the stages that train a flow model (teacher and student) have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dmvae import config as configs
from dmvae.flow.loss import TimeDistribution, drop_labels
from dmvae.generators.flow import FlowModelConfig
from dmvae.models.velocity import VelocityModel
from dmvae.ranges import Share, TimeShift
from dmvae.runtime.random import Random
from dmvae.training.stage import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class LatentTraining(TrainingConfig):
    """Fields of every stage that trains a network on labelled latents, as a flow or otherwise."""

    label_dropout: Share = 0.1
    """Share of labels replaced by "no label" in training, for guidance."""
    time_distribution: TimeDistribution = "uniform"
    """How a flow model's training times are drawn."""
    time_shift: TimeShift = configs.added(1.0)
    """Shift of these times towards noise, t / (t + shift (1 - t)); 1 is none. At the same noise level, latents with
    more elements d = C H W are less hidden; RAE takes sqrt(d / 4096) (arXiv 2510.11690), here and in `sample`."""


@dataclass(frozen=True, kw_only=True)
class FlowTraining(LatentTraining):
    """Fields of every stage that trains a flow model by flow matching."""

    model: FlowModelConfig = field(default_factory=FlowModelConfig)
    """The network."""


def flow_loss(network: VelocityModel, z: Tensor, labels: Tensor, config: FlowTraining, rng: Random) -> Tensor:
    """The flow-matching loss of one update, a scalar. z: latents [n, C, H, W], normalised per channel; labels int64
    [n]."""
    labels = drop_labels(labels, config.label_dropout, network.config.num_classes, rng)
    network.time_distribution, network.time_shift = config.time_distribution, config.time_shift
    return network.loss(z, labels, rng)
