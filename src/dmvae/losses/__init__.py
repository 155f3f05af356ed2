"""The loss of every stage that trains a decoder: pixels, perception, adversary."""

from __future__ import annotations

from dataclasses import dataclass, field

from dmvae.losses.discriminators import AdversarialConfig
from dmvae.losses.discriminators.patchgan import PatchGANConfig
from dmvae.losses.perceptual import PerceptualConfig
from dmvae.ranges import Weight


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """loss = l1 |x - y| + l2 (x - y)^2 + perceptual + weight * adversarial."""

    l1: Weight = 1.0
    """Weight of the mean absolute difference, images in [-1, 1]."""
    l2: Weight = 0.0
    """Weight of the mean squared difference."""
    perceptual: PerceptualConfig | None = None
    """Perceptual loss by `type`: lpips or effnet-lite0; null is off."""
    adversarial: AdversarialConfig = field(default_factory=PatchGANConfig)
    """The adversary, by `type`: patchgan, where none is said, or features."""
