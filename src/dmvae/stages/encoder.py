"""Stage `encoder`: a small encoder that learns from the images alone, or from a large encoder.

From the images: SimCLR (Chen et al., arXiv 2002.05709). Its loss is one matrix product, without a second network or a
momentum schedule. On small images its features tell classes apart after minutes on a CPU.
From a large encoder with public weights: it predicts that encoder's features of the same view, place by place (Beyer et
al., arXiv 2106.05237). Afterwards only the small one is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.encoders import Encoder, EncoderConfig, load_public, require_features, require_stride
from dmvae.inputs import Inputs
from dmvae.ranges import Decay, Range, Scale, Width
from dmvae.registry import is_ours
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.training.augment import random_view
from dmvae.training.stage import Batch, Networks, TrainingConfig, TrainingStage, Update, stage


@dataclass(frozen=True, kw_only=True)
class EncoderTraining(TrainingConfig):
    """Training of the encoder, self-supervised or by another encoder."""

    start: Literal["public", "scratch"] | None = configs.added(None)
    """Begin with the encoder's public weights, or with random ones. Required for an encoder that has public ones."""

    target: EncoderConfig | None = configs.added(None)
    """An encoder with public weights whose features this one learns (distillation). It must have the same stride. null:
    SimCLR, from the images alone."""
    temperature: Scale = 0.2
    """Temperature of the contrastive loss's softmax; for SimCLR only."""
    projection: Width = 128
    """Width of the space in which views are compared; for SimCLR only."""
    min_crop: Annotated[float, Range(0, 1, "(]")] = 0.3
    """Smallest share of the image's area in a random crop. If it is above 9/16, the smallest share is 0.75 *
    sqrt(min_crop) instead: aspect ratios run from 9/16 to 16/9, and a side longer than the image's is cut."""
    ema: Decay = 0.99
    """Decay of the averaged weights that are saved."""


class EncoderNetworks(Networks):
    encoder: Encoder
    projector: nn.Module
    """From features to the space in which they are compared."""
    target: nn.Module
    """The frozen encoder that is learnt from, where there is one."""


@stage("encoder")
class EncoderStage(TrainingStage[EncoderTraining, EncoderNetworks]):
    Config = EncoderTraining
    uses = ("autoencoder.encoder",)
    makes_encoder = True

    def build(self) -> EncoderNetworks:
        networks = EncoderNetworks()
        networks.encoder = self.inputs.new_encoder()
        data, own = self.inputs.data, self.inputs.shape.encoder
        if self.inputs.weights and self.config.start == "public":
            load_public(networks.encoder, own, size=data.size, channels=data.channels)
        width = networks.encoder.channels
        if self.config.target is None:
            networks.projector = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.config.projection)
            )
        else:
            networks.target = target = self.inputs.frozen_encoder(self.config.target)
            require_stride(target, networks.encoder.stride, 1, "encoder.target")
            require_features(target, "encoder.target", size=data.size, channels=data.channels)
            # Linear, so that the features themselves learn what the target's hold, and not a network behind them.
            networks.projector = nn.Conv2d(width, target.channels, 1)
        networks.trains["encoder"] = [*networks.encoder.parameters(), *networks.projector.parameters()]
        networks.averaged = ("encoder",)
        return networks

    def updates(self, networks: EncoderNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        def view() -> Tensor:
            return random_view(batch.data, rng, self.config.min_crop)

        if self.config.target is None:
            features = networks.encoder(torch.cat([view(), view()])).float().mean(dim=(2, 3))
            a, b = F.normalize(networks.projector(features), dim=1).chunk(2)
            loss, accuracy = contrast(distributed.gather(a), distributed.gather(b), self.config.temperature)
            yield Update("encoder", loss, {"encoder/pairs_found": accuracy})
        else:
            seen = view()
            with torch.no_grad():
                features = standardized(networks.target(seen).float())
            yield Update("encoder", F.mse_loss(networks.projector(networks.encoder(seen)).float(), features))

    @classmethod
    def problems(cls, config: EncoderTraining, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        own = inputs.shape.encoder
        if config.start == "public" and own.starts_random:
            yield f"encoder.start: {own.type!r} has no public weights; leave it out"
        if config.start is None and not own.starts_random and is_ours(type(own)):  # a plugin's may have none
            yield (
                f"encoder.start: {own.type!r} has public weights: say whether this stage begins with them, public, or "
                "with random ones, scratch; or set encoder to null, to take them as they are"
            )
        if config.target is None:
            return
        if config.target.starts_random:
            yield (
                f"encoder.target: {config.target.type!r} would be random, and there is nothing to learn from it; give "
                "an encoder with public weights (type: timm)"
            )
        if told := config.target.absent():
            yield f"encoder.target: {told}"
        for name in ("temperature", "projection"):
            if getattr(config, name) != getattr(EncoderTraining, name):
                yield f"encoder.{name}: it is SimCLR's, and with encoder.target there is none; leave one of both out"


def standardized(features: Tensor) -> Tensor:
    """Features [n, F, h, w] with mean 0 and variance 1 in each channel, over the places of all ranks' images. So a mean
    squared error is the unexplained share of the variance, and a few channels of large spread do not decide it."""
    mean, variance = (of[:, None, None] for of in distributed.moments(features))
    return (features - mean) * variance.clamp_min(1e-12).rsqrt()


def contrast(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(NT-Xent loss, share of views whose most similar other view is their pair), two scalars, for unit vectors a, b
    [n, d]: row i of a and row i of b are two views of one image. The loss is the mean over the 2 n views of
    -log softmax(cosine / temperature), over the 2 n - 1 other views, at the pair."""
    n = len(a)
    both = torch.cat([a, b])
    similarity = (both @ both.T).float() / temperature
    similarity.fill_diagonal_(float("-inf"))
    pair = torch.arange(2 * n, device=a.device).roll(n)
    return F.cross_entropy(similarity, pair), (similarity.argmax(dim=1) == pair).float().mean()
