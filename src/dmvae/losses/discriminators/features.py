"""Discriminator `features`: small heads on a frozen encoder's features, as in StyleGAN-T (arXiv 2301.09515) and RAE
(arXiv 2510.11690, with DINO-S/8).

A network that already knows images describes each patch; only the heads learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dmvae import config as configs
from dmvae.config import Values
from dmvae.encoders import EncoderConfig, levels, load_public
from dmvae.losses.discriminators import AdversarialConfig, DiscriminatorClass
from dmvae.models.discriminator import Discriminator
from dmvae.ranges import Range, Width
from dmvae.registry import register
from dmvae.runtime.precision import full_precision


class FeatureGAN(Discriminator):
    """A head of spectrally normalised convolutions on each level of a frozen encoder's features.

    encoder: its config as a mapping, `{"type": "timm", ...}`. image_size, in_channels: of the images. width: channels
    of a head. layers: its 3x3 convolutions. Raises ValueError for an encoder that does not take such images.
    """

    frozen_parts = ("frozen",)

    @register_to_config
    def __init__(self, *, encoder: Values, image_size: int, in_channels: int = 3, width: int = 64, layers: int = 1):
        super().__init__()
        config = configs.read(EncoderConfig, dict(encoder), "encoder")
        self.frozen = config.build(size=image_size, channels=in_channels).requires_grad_(False).eval()
        try:
            with torch.no_grad():
                found = levels(self.frozen, torch.zeros(1, in_channels, image_size, image_size))
        except (AssertionError, RuntimeError, TypeError) as error:  # each network refuses a size in its own way
            raise ValueError(
                f"encoder: {config.type!r} cannot be run on images of {image_size} pixels: {error}; give "
                "another encoder, or one with another patch_size"
            ) from error
        self.heads = nn.ModuleList(head(features.shape[1], width, layers) for features in found)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, h, w] in [-1, 1] -> logits [n, levels, h', w'], on the grid h' w' of the finest level."""
        seen = levels(self.frozen, x)
        with full_precision(x):  # bf16 spoils a spectral norm's power iteration, and heads are small
            # Length sqrt(channels) at every place, because levels and encoders differ in scale.
            units = [F.normalize(level.float(), dim=1) * level.shape[1] ** 0.5 for level in seen]
            logits = [layers(unit) for unit, layers in zip(units, self.heads, strict=True)]
        finest = max((answer.shape[-2:] for answer in logits), key=lambda size: size[0] * size[1])
        # A level counts as much as any other, however few places it has.
        return torch.cat([F.interpolate(answer, finest) for answer in logits], dim=1)


def head(channels: int, width: int, layers: int) -> nn.Sequential:
    """Features [n, channels, h, w] -> logits [n, 1, h, w]."""
    parts: list[nn.Module] = [spectral_norm(nn.Conv2d(channels, width, 1)), nn.LeakyReLU(0.2)]
    for _ in range(layers):
        parts += [spectral_norm(nn.Conv2d(width, width, 3, padding=1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts, spectral_norm(nn.Conv2d(width, 1, 1)))


@register("features")
@dataclass(frozen=True, kw_only=True)
class FeatureGANConfig(AdversarialConfig):
    """Heads on the features of a frozen encoder, at several of its depths where it gives them: after StyleGAN-T and
    RAE, with plainer heads."""

    network: ClassVar[DiscriminatorClass] = FeatureGAN

    encoder: EncoderConfig
    """The encoder, with its public weights. Use another network than the one that judges the samples."""
    width: Width = 64
    """Channels of a head."""
    layers: Annotated[int, Range(0, 8)] = 1
    """3x3 convolutions of a head."""

    def missing(self) -> list[str]:
        return self.encoder.missing()

    def absent(self) -> str:
        return self.encoder.absent()

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> FeatureGAN:
        """Raises ValueError for an encoder that would be random."""
        if self.encoder.starts_random:
            raise ValueError(
                f"encoder: {self.encoder.type!r} would be random; give one with public weights (type: timm)"
            )
        network = FeatureGAN(
            encoder=configs.plain(self.encoder),
            image_size=size,
            in_channels=channels,
            width=self.width,
            layers=self.layers,
        )
        if pretrained:
            load_public(network.frozen, self.encoder, size=size, channels=channels)
        return network
