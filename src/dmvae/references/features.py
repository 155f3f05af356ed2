"""Reference `features`: features of the training images in the tokenizer's own encoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dmvae.latents.store import LatentSet
from dmvae.references import Surroundings
from dmvae.references.data import DataConfig, Samples, encoded
from dmvae.references.reduction import Reduction, require_channels
from dmvae.registry import register


@register("features")
@dataclass(frozen=True, kw_only=True)
class FeaturesReference(DataConfig):
    """Features of the tokenizer's encoder (self-supervised, or any timm model's), through its bottleneck:
    the paper's reference."""

    reduction: Reduction = "bottleneck"
    """How the encoder's channels become the latents': "bottleneck", the tokenizer's own, learned with the
    reconstruction of images; "pca", principal components, whitened; "random", a random orthogonal projection."""

    def check(self, inputs: Surroundings) -> None:
        data = self.chosen(inputs)
        if self.reduction != "bottleneck":  # the tokenizer's own bottleneck fits its own features
            channels, height, width = inputs.latent_shape
            require_channels(
                self.reduction, min(inputs.new_encoder().channels, len(data) * height * width - 1), channels
            )

    def build(self, inputs: Surroundings) -> Samples:
        if self.reduction != "bottleneck":
            return super().build(inputs)
        if not encoded(inputs.out / "latents"):
            inputs.encode(inputs.autoencoder(), self.chosen(inputs), inputs.out / "latents", "reference data")
        latents = LatentSet(inputs.out / "latents")
        return Samples(latents, inputs.num_classes, latents.mean, latents.std)

    def network(self, inputs: Surroundings) -> nn.Module:
        return inputs.autoencoder().parts().encoder[0]
