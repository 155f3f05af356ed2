"""The loss of every stage that trains a decoder: pixels, perception, adversary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from dmvae.losses.perceptual import PerceptualConfig
from dmvae.ranges import Range, Rate, Share, Weight, Width


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """PatchGAN with hinge loss and the adaptive weight of VQGAN (arXiv 2012.09841)."""

    weight: Weight = 0.5
    """Generator term's weight on top of the adaptive one; 0 trains no discriminator."""
    start: Share = 0.5
    """Share of the tokenizer stage after which the adversary joins; later stages have it from their start."""
    width: Width = 64
    """Channels of the discriminator's first layer."""
    layers: Annotated[int, Range(1, 8)] = 3
    """Its strided layers; n of them need images of 3 * 2^n pixels."""
    norm: str = "batch"
    """"batch" (over all ranks), "group" or "none"."""
    augment: bool = True
    """Differentiable augmentation of what the discriminator sees (arXiv 2006.10738)."""
    consistency: Weight = 0.0
    """Weight of the squared difference between its answers with and without augmentation (arXiv 1910.12027)."""
    learning_rate: Rate | None = None
    """The discriminator's learning rate; null is the stage's."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """loss = l1 |x - y| + l2 (x - y)^2 + perceptual + adaptive weight * adversarial."""

    l1: Weight = 1.0
    """Weight of the mean absolute difference, images in [-1, 1]."""
    l2: Weight = 0.0
    """Weight of the mean squared difference."""
    perceptual: PerceptualConfig | None = None
    """Perceptual loss by `type`: lpips or effnet-lite0; null is off."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """The adversary."""
