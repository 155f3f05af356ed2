"""Discriminators: one file each. They distinguish images from reconstructions; the decoder learns to deceive them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dmvae import config as configs
from dmvae.config import Values
from dmvae.models.discriminator import Discriminator
from dmvae.ranges import Rate, Scale, Share, Weight
from dmvae.registry import Registered
from dmvae.runtime.hashing import content_hash

DiscriminatorClass = type[Discriminator]
"""An alias, because in the body of a registered class `type` is the class attribute, not the builtin."""


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(Registered):
    """A discriminator, with hinge loss."""

    required: ClassVar[tuple[str, ...]] = ("build", "network")
    unnamed: ClassVar[str] = "patchgan"

    network: ClassVar[DiscriminatorClass]
    """The class of what `build` returns, by which a later stage loads it."""

    weight: Weight = 0.5
    """Generator term's weight; 0 trains no discriminator."""
    adaptive: bool = configs.added(True)
    """Multiply `weight` by VQGAN's adaptive weight (arXiv 2012.09841): the norm of the reconstruction's gradient over
    that of the adversary's, at the decoder's last layer. false: `weight` as it stands; REPA-E has 0.1."""
    adaptive_most: Scale = configs.added(1e4)
    """The most that the adaptive weight is, before `weight`: without a limit, an idle discriminator's small gradient,
    which points nowhere, acts as much as another's. 1e4 is VQGAN's, for losses that are sums over an image; in units of
    ours, which are means, VA-VAE's at 256 px is 0.051."""
    start: Share = 0.5
    """Share of the tokenizer stage after which the adversary joins; later stages have it from their start."""
    learn_from: Share | None = configs.added(None)
    """Share of that stage after which the discriminator trains, unseen by the decoder until `start`; null is `start`.
    RAE has 0.375 and 0.5."""
    augment: bool = True
    """Differentiable augmentation of what the discriminator sees (arXiv 2006.10738)."""
    cutout: Share = configs.added(0.5)
    """Share of the height and of the width that the augmentation blanks in each image; 0 is none. The authors' scripts
    have 0.2, RAE 0."""
    rounded: bool = configs.added(False)
    """Round reconstructions to 8 bits where the discriminator learns, as RAE does: else it can tell them from images by
    that alone."""
    consistency: Weight = 0.0
    """Weight of the mean squared difference of its logits with and without augmentation, of images and reconstructions
    (balanced consistency, arXiv 2002.04724)."""
    learning_rate: Rate | None = None
    """The discriminator's learning rate; null is the stage's."""
    start_from: Path | None = configs.added(None)
    """A discriminator that has learned already, whose weights a new one starts with: the folder that a run left
    (RUN/VARIANT/tokenizer/discriminator), or a checkpoint that holds one, such as VA-VAE's, REPA-E's or the paper's
    scripts', as a path or ORG/REPO/FILE on the Hugging Face hub. What it holds counts, not where it lies. null: random
    weights."""

    def __post_init__(self) -> None:
        if self.consistency and not self.augment:
            raise ValueError("consistency: it compares answers with and without augmentation; set augment: true")
        if self.learn_from is not None and self.learn_from > self.start:
            later = f"{self.learn_from:g} is later than start, {self.start:g}"
            raise ValueError(f"learn_from: {later}, from which the decoder has to deceive it; give at most that")

    def identity(self, values: Values) -> Values:
        return values if self.start_from is None else values | {"start_from": content_hash([self.start_from])}

    def learns(self, step: int, steps: int) -> bool:
        """Whether the discriminator trains in a step, from 0, of the `steps` steps of the stage that `start` is a share
        of."""
        return step >= (self.start if self.learn_from is None else self.learn_from) * steps

    def acts(self, step: int, steps: int) -> bool:
        """Whether the adversarial loss trains the decoder in that step."""
        return step >= self.start * steps

    def missing(self) -> list[str]:
        """What `build(pretrained=True)` would have to download, or lacks, for a dry run to print."""
        return []

    def absent(self) -> str:
        """The local file of weights that `build(pretrained=True)` would not find, in words; "" where it finds all."""
        return ""

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Discriminator:
        """The network for images [n, channels, size, size], with random weights. With `pretrained` its parts that never
        train have their public weights."""
        raise NotImplementedError
