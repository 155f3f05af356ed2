"""Training of a flow model on latents, as the reference's teacher and the generator have it in common."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dmvae import config as configs
from dmvae.flow.loss import TimeDistribution, drop_labels, flow_matching_loss, sample_time
from dmvae.models.dit import LightningDiT, lightningdit, published
from dmvae.runtime.random import Random
from dmvae.training.contract import TrainingConfig, Update


@dataclass(frozen=True, kw_only=True)
class FlowModelConfig:
    """A LightningDiT, by size or by its numbers."""

    size: str | None = None
    """"Mini/1", "S/1", "B/1", "L/1" or "XL/1" (the number is the patch size); null: the fields below say."""
    width: int = 384
    """Channels of a token."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 6
    """Attention heads."""
    patch_size: int = 1
    """Latents along each side that a token holds, where `size` is null; more than 1 for pixels."""
    head_width: int | None = None
    """Channels of a wide shallow head on the network, a multiple of 4 * heads, for latents with more channels than
    the network's tokens have (RAE, arXiv 2510.11690); null is none."""
    head_depth: int = 2
    """Transformer blocks of the head."""

    def __post_init__(self) -> None:
        configs.require_positive(self, "width", "depth", "heads", "patch_size", "head_width", "head_depth")
        if self.size is not None:
            published(self.size)

    def build(self, latent_shape: tuple[int, int, int], num_classes: int) -> LightningDiT:
        """The network for latents (C, H, W). Warns where it is too narrow for them."""
        channels, side, other = latent_shape
        assert side == other, "latents are square"
        common: dict[str, Any] = {"in_channels": channels, "input_size": side, "num_classes": num_classes}
        common |= {"head_width": self.head_width, "head_depth": self.head_depth}
        if self.size is not None:
            model = lightningdit(self.size, **common)
        else:
            numbers = {"width": self.width, "depth": self.depth, "heads": self.heads, "patch_size": self.patch_size}
            model = LightningDiT(**numbers, **common)
        shape = model.config
        held, wide = channels * shape.patch_size**2, shape.head_width or shape.width
        if wide < held:
            warnings.warn(
                f"a token of these latents holds {held} values, more than the {wide} channels of the flow model's last "
                "layers, which then cannot express a velocity's noise (arXiv 2510.11690): "
                f"set model.head_width to at least {-(-held // (4 * shape.heads)) * 4 * shape.heads}",
                stacklevel=2,
            )
        return model


@dataclass(frozen=True, kw_only=True)
class FlowTraining(TrainingConfig):
    """Fields of every stage that trains a flow model by flow matching."""

    model: FlowModelConfig = field(default_factory=FlowModelConfig)
    """The network."""
    label_dropout: float = 0.1
    """Share of labels replaced by "no label" in training, for guidance."""
    time_distribution: TimeDistribution = "uniform"
    """How training times are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be in [0, 1], got {self.label_dropout:g}")


def flow_update(
    trains: str, network: LightningDiT, z: Tensor, labels: Tensor, config: FlowTraining, rng: Random
) -> Update:
    """One flow-matching turn on latents z [n, C, H, W], normalised per channel."""
    labels = drop_labels(labels, config.label_dropout, network.config.num_classes, rng)
    t = sample_time(len(z), config.time_distribution, rng)
    return Update(trains, flow_matching_loss(network, z, labels, t, rng.normal(*z.shape)))
