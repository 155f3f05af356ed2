"""Alignment `repa_e`: hidden tokens of a flow model on the latents are aligned to the features (REPA-E, arXiv
2504.10483).

A flow model trains along on the latents, as in REPA (arXiv 2410.06940): by flow matching, and by aligning tokens from
inside it to the frozen encoder's features of the image without noise. The tokenizer follows the alignment only, through
the flow model's first blocks: by the flow loss it would learn latents that are easy to denoise because they carry no
information.

    h [n, F, h, w] = projector(tokens of v(z_t, t, label) behind block `depth`)
    alignment = mean(1 - cos(h, f))                       moves the tokenizer, by `weight`
    flow + flow_weight * alignment                        moves flow model and projector, on detached latents
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.config import Values
from dmvae.flow.loss import TimeDistribution, Times, drop_labels
from dmvae.generators import networks
from dmvae.generators.flow import FlowModelConfig, TransformerConfig
from dmvae.losses.alignment import AlignmentConfig
from dmvae.losses.tokens import away, depth_of
from dmvae.models.base import Model
from dmvae.models.dit import DiffusionTransformer
from dmvae.models.projector import Projector
from dmvae.ranges import Decay, Depth, Share, TimeShift, Weight, Width
from dmvae.registry import register
from dmvae.runtime.distributed import BatchNorm2d
from dmvae.runtime.random import Random


@register("repa_e")
@dataclass(frozen=True, kw_only=True)
class RepaE(AlignmentConfig):
    """Through a flow model that trains along: REPA-E. Both losses have the same times and noise, so one pass of the
    flow model is enough."""

    weight: Weight = 1.5
    """Weight of the alignment loss in the tokenizer's; 1.5 is REPA-E's."""
    balance: Literal["fixed", "gradient"] = "fixed"
    """As for the other alignments; REPA-E's is "fixed"."""
    flow_weight: Weight = 0.5
    """Weight of the alignment loss in the flow model's; 0.5 is REPA's."""
    depth: Depth | None = None
    """Blocks of the flow model behind which its tokens are aligned; null is a third of them, rounded up (REPA: 8 of
    28)."""
    width: Width = 2048
    """Hidden channels of the projector from tokens to features, of three layers."""
    model: TransformerConfig = field(default_factory=FlowModelConfig)
    """The flow model."""
    ema: Decay | None = configs.added(None)
    """Decay of the flow model's moving average, which is then kept for `generator.start_from: alignment`: the generator
    that REPA-E trains with the tokenizer, at 0.9999. `generator.model` has to be the same network. null: nothing can
    start from it."""
    label_dropout: Share = 0.1
    """Share of labels replaced by "no label"."""
    time_distribution: TimeDistribution = "uniform"
    """How training times are drawn."""
    time_shift: TimeShift = 1.0
    """Their shift towards noise, as `generator.time_shift`; 1 is none."""

    @property
    def patch(self) -> int:
        return self.model.patch

    def projection(self, latent_shape: tuple[int, int, int], num_classes: int, width: int) -> FlowProjection:
        with torch.device("meta"):
            built = self.model.build(latent_shape, num_classes)
        depth = depth_of(self.depth, built, "tokenizer.alignment.depth")
        network = {name: value for name, value in built.config.items() if not name.startswith("_")}
        projection = FlowProjection(
            network=network, depth=depth, hidden=self.width, width=width, kind=type(built).__name__
        )
        projection.flow.times = Times(self.time_distribution, self.time_shift)
        return projection

    def losses(
        self, projection: nn.Module, z: Tensor, labels: Tensor, features: Tensor, rng: Random
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assert isinstance(projection, FlowProjection)
        labels = drop_labels(labels, self.label_dropout, projection.flow.config.num_classes, rng)
        flow, projected = projection(z, labels, rng)
        alignment = away(projected, features)
        log = {"alignment/cosine": alignment.detach(), "alignment/flow": flow.detach()}
        return alignment, flow + self.flow_weight * alignment, log


class FlowProjection(Model):
    """A flow model on normalised latents, and the projector from its tokens to the features.

    network: what the flow model takes. depth: blocks behind which tokens are taken. hidden: the projector's inner
    channels. width: F, those of the features. kind: name of the flow model's class.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, *, network: Values, depth: int, hidden: int, width: int, kind: str = "LightningDiT"):
        super().__init__()
        flow = networks()[kind](**network)
        assert isinstance(flow, DiffusionTransformer)
        self.flow, self._no_split_modules = flow, flow._no_split_modules
        # Latents change, and the flow model must see mean 0 and standard deviation 1 at every step.
        self.norm = BatchNorm2d(network["in_channels"], affine=False)
        self.projector = Projector(width=self.flow.config.width, hidden=hidden, out=width)

    def forward(self, z: Tensor, labels: Tensor, rng: Random) -> tuple[Tensor, Tensor]:
        """Latents [n, C, H, W] and labels [n] -> the flow-matching loss, a scalar, and the projected tokens
        [n, F, h, w]."""
        found = self.flow.at_random_times(self.norm(z), labels, rng, self.config["depth"])
        return found.flow, self.projector(found.tokens)

    def compiled_parts(self) -> list[nn.Module]:
        """As the flow model's."""
        return self.flow.compiled_parts()
