"""The loss of every stage that trains a decoder: pixels, perception, adversary."""

from __future__ import annotations

from dataclasses import dataclass, field

from dmvae.losses.discriminators import AdversarialConfig
from dmvae.losses.discriminators.patchgan import PatchGANConfig
from dmvae.losses.perceptual import PerceptualConfig
from dmvae.ranges import Weight


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """loss = l1 mean |x - y| + l2 mean (x - y)^2 + perceptual + w adversarial, of images x and reconstructions y; w is
    the adversary's `weight`, times the adaptive one where `adaptive` is set."""

    l1: Weight = 1.0
    """Weight of the mean absolute difference, images in [-1, 1]."""
    l2: Weight = 0.0
    """Weight of the mean squared difference."""
    perceptual: PerceptualConfig | None = None
    """Perceptual loss by `type`: lpips or effnet-lite0; null is off."""
    adversarial: AdversarialConfig = field(default_factory=PatchGANConfig)
    """The adversary, by `type`: patchgan (the default) or features."""
