"""Reference `features`: the latents that the frozen encoder and the bottleneck give the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dmvae.references import ReferenceConfig
from dmvae.registry import register
from dmvae.training.random import Random

if TYPE_CHECKING:
    from dmvae.inputs import Inputs


@register("features")
@dataclass(frozen=True, kw_only=True)
class FeaturesReference(ReferenceConfig):
    """Features of the tokenizer's encoder (self-supervised, or any timm model's), through its bottleneck:
    the paper's reference."""

    def build(self, inputs: Inputs) -> Features:
        from dmvae.stages.latents import LatentSet, encode_dataset

        folder = inputs.out / "latents"
        encode_dataset(
            inputs.autoencoder(), inputs.train_set, folder, inputs, title=f"{inputs.variant}  reference data"
        )
        return Features(LatentSet(folder))


class Features:
    velocity: None = None

    def __init__(self, latents) -> None:
        self.latents = latents
        self.mean, self.std = latents.mean, latents.std

    def sample(self, n: int, generator: Random) -> tuple[Tensor, Tensor]:
        index = generator.integers(len(self.latents), n).cpu()
        return self.latents.__getitems__(index)
