"""Reference `features`: what the tokenizer's own encoder sees in the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from dmvae.references.data import DataConfig, Samples, encode, encoded, open_latents
from dmvae.references.reduction import Reduction, require_channels
from dmvae.registry import register

if TYPE_CHECKING:
    from dmvae.inputs import Inputs


@register("features")
@dataclass(frozen=True, kw_only=True)
class FeaturesReference(DataConfig):
    """Features of the tokenizer's encoder (self-supervised, or any timm model's), through its bottleneck:
    the paper's reference."""

    reduction: Reduction = "bottleneck"
    """How the encoder's channels become the latents': "bottleneck", the tokenizer's own, learned with the
    reconstruction of images; "pca", principal components, whitened; "random", a random orthogonal projection."""

    def check(self, inputs: Inputs) -> None:
        from dmvae.inputs import build_autoencoder, describe_latents

        data = self.chosen(inputs)
        if self.reduction != "bottleneck":  # which is the tokenizer's own, as the network is
            channels, height, width = describe_latents(inputs.recipe)
            encoder = build_autoencoder(inputs.recipe).encoder
            require_channels(self.reduction, min(encoder.channels, len(data) * height * width - 1), channels)

    def build(self, inputs: Inputs) -> Samples:
        if self.reduction != "bottleneck":
            return super().build(inputs)
        if not encoded(inputs.out / "latents"):
            encode(inputs.autoencoder(), self.chosen(inputs), inputs.out / "latents", inputs)
        latents = open_latents(inputs)
        return Samples(latents, inputs.num_classes, latents.mean, latents.std)

    def network(self, inputs: Inputs) -> nn.Module:
        return inputs.autoencoder().encoder
