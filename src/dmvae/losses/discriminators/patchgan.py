"""Discriminator `patchgan`: convolutions on pixels, trained from scratch (pix2pix, arXiv 1611.07004)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dmvae.losses.discriminators import AdversarialConfig, DiscriminatorClass
from dmvae.models.discriminator import PatchGAN
from dmvae.ranges import Range, Width
from dmvae.registry import register


@register("patchgan")
@dataclass(frozen=True, kw_only=True)
class PatchGANConfig(AdversarialConfig):
    """PatchGAN: a logit for each patch of pixels."""

    network: ClassVar[DiscriminatorClass] = PatchGAN

    width: Width = 64
    """Channels of the discriminator's first layer."""
    layers: Annotated[int, Range(1, 8)] = 3
    """Its strided layers; n of them need images of 3 * 2^n pixels."""
    norm: Literal["batch", "group", "none"] = "batch"
    """"batch", over all ranks, is the published one; "group" depends on no other image."""

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> PatchGAN:
        return PatchGAN(in_channels=channels, width=self.width, layers=self.layers, norm=self.norm)
