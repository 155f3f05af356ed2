"""What the stages that train a flow model (teacher and student) have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dmvae.flow.loss import TimeDistribution, drop_labels
from dmvae.generators.flow import FlowModelConfig
from dmvae.models.velocity import VelocityModel
from dmvae.ranges import Share
from dmvae.runtime.random import Random
from dmvae.training.stage import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class LatentTraining(TrainingConfig):
    """Fields of every stage that trains a network on labelled latents, as a flow or otherwise."""

    label_dropout: Share = 0.1
    """Share of labels replaced by "no label" in training, for guidance."""
    time_distribution: TimeDistribution = "uniform"
    """How a flow model's training times are drawn."""


@dataclass(frozen=True, kw_only=True)
class FlowTraining(LatentTraining):
    """Fields of every stage that trains a flow model by flow matching."""

    model: FlowModelConfig = field(default_factory=FlowModelConfig)
    """The network."""


def flow_loss(network: VelocityModel, z: Tensor, labels: Tensor, config: FlowTraining, rng: Random) -> Tensor:
    """The flow-matching loss of one update on latents z [n, C, H, W], normalised per channel: a scalar."""
    labels = drop_labels(labels, config.label_dropout, network.config.num_classes, rng)
    network.time_distribution = config.time_distribution
    return network.loss(z, labels, rng)
