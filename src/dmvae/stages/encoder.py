"""Stage `encoder`: a small self-supervised encoder, where no pretrained one is used.

SimCLR (Chen et al., arXiv 2002.05709): its loss is one matrix product, without a second network or a momentum schedule.
On small images its features tell classes apart after minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.encoders import Encoder
from dmvae.ranges import Decay, Range, Scale, Width
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.training.augment import random_view
from dmvae.training.stage import Batch, Networks, TrainingConfig, TrainingStage, Update, stage


@dataclass(frozen=True, kw_only=True)
class EncoderTraining(TrainingConfig):
    """Self-supervised training of the encoder."""

    temperature: Scale = 0.2
    """Temperature of the contrastive loss's softmax."""
    projection: Width = 128
    """Width of the space in which views are compared."""
    min_crop: Annotated[float, Range(0, 1, "(]")] = 0.3
    """Smallest share of an image's area in a view."""
    ema: Decay = 0.99
    """Decay of the averaged weights that are saved."""


class EncoderNetworks(Networks):
    encoder: Encoder
    projector: nn.Sequential


@stage("encoder")
class EncoderStage(TrainingStage[EncoderTraining, EncoderNetworks]):
    Config = EncoderTraining
    uses = ("autoencoder.encoder",)
    makes_encoder = True

    def build(self) -> EncoderNetworks:
        networks = EncoderNetworks()
        networks.encoder = self.inputs.new_encoder()
        width = networks.encoder.channels
        networks.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.config.projection))
        networks.trains["encoder"] = [*networks.encoder.parameters(), *networks.projector.parameters()]
        networks.averaged = ("encoder",)
        return networks

    def updates(self, networks: EncoderNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        views = torch.cat([random_view(batch.data, rng, self.config.min_crop) for _ in range(2)])
        features = networks.encoder(views).float().mean(dim=(2, 3))
        a, b = F.normalize(networks.projector(features), dim=1).chunk(2)
        loss, accuracy = contrast(distributed.gather(a), distributed.gather(b), self.config.temperature)
        yield Update("encoder", loss, {"encoder/pairs_found": accuracy})


def contrast(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(the NT-Xent loss, the share of views whose nearest other view is their pair), of unit vectors a, b [n, d]: row i
    of a and row i of b are two views of one image."""
    n = len(a)
    both = torch.cat([a, b])
    similarity = (both @ both.T).float() / temperature
    similarity.fill_diagonal_(float("-inf"))
    pair = torch.arange(2 * n, device=a.device).roll(n)
    return F.cross_entropy(similarity, pair), (similarity.argmax(dim=1) == pair).float().mean()
