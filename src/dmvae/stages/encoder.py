"""Stage `encoder`: a small self-supervised encoder, where no pretrained one is used.

SimCLR (Chen et al., arXiv 2002.05709): it needs one matrix product beside the encoder, no second network
and no momentum schedule, and on small images it separates classes within minutes of CPU time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.inputs import Inputs
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.training.augment import random_view
from dmvae.training.contract import Batch, Networks, TrainingConfig, Update

NAME = "encoder"
READS: tuple[str, ...] = ()
USES = ("autoencoder.encoder",)


@dataclass(frozen=True, kw_only=True)
class EncoderTraining(TrainingConfig):
    """Self-supervised training of the encoder."""

    temperature: float = 0.2
    """Softmax temperature of the contrast."""
    projection: int = 128
    """Width of the space in which views are compared."""
    min_crop: float = 0.3
    """Smallest share of an image's area in a view."""
    ema: float = 0.99
    """Decay of the averaged weights that are saved."""


def build(config: EncoderTraining, inputs: Inputs) -> Networks:
    data = inputs.recipe.data
    assert inputs.recipe.autoencoder is not None
    encoder = inputs.recipe.autoencoder.encoder.build(size=data.size, channels=data.channels)
    width: int = encoder.channels  # type: ignore[assignment]
    projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.projection))
    return Networks(
        {"encoder": encoder, "projector": projector},
        trains={"encoder": [*encoder.parameters(), *projector.parameters()]},
        averaged=("encoder",),
        extra={"dataset": inputs.train_set, "config": config},
    )


def updates(networks: Networks, batch: Batch, rng: Random) -> Iterator[Update]:
    config: EncoderTraining = networks.config
    views = torch.cat([random_view(batch.data, rng, config.min_crop) for _ in range(2)])
    features = networks.encoder(views).float().mean(dim=(2, 3))
    a, b = F.normalize(networks.projector(features), dim=1).chunk(2)
    loss, accuracy = contrast(distributed.gather(a), distributed.gather(b), config.temperature)
    yield Update("encoder", loss, {"encoder/pairs_found": accuracy})


def contrast(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent over unit vectors a, b [n, d], row i of one being the positive of row i of the other; and the
    share of views whose nearest other view is their pair."""
    n = len(a)
    both = torch.cat([a, b])
    similarity = (both @ both.T).float() / temperature
    similarity.fill_diagonal_(float("-inf"))
    pair = torch.arange(2 * n, device=a.device).roll(n)
    return F.cross_entropy(similarity, pair), (similarity.argmax(dim=1) == pair).float().mean()
