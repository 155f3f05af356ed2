"""Stage `decoder`: decoder and discriminator on the final latents; encoder and bottleneck stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from dmvae.ranges import Decay, Range
from dmvae.runtime.random import Random
from dmvae.stages.reconstruction import DecoderNetworks, DecoderStage, discriminate, reconstruct
from dmvae.stages.tokenizer import noised
from dmvae.training.stage import Batch, TrainingConfig, Update, stage


@dataclass(frozen=True, kw_only=True)
class DecoderTraining(TrainingConfig):
    """Training of the decoder on frozen latents."""

    noise: Annotated[float, Range(0, 1000)] = 0.0
    """As `tokenizer.noise`: the decoder is trained on latents with noise of this many standard deviations."""
    ema: Decay = 0.999
    """Decay of the averaged weights that are saved."""


@stage("decoder")
class DecoderTrainingStage(DecoderStage[DecoderTraining, DecoderNetworks]):
    Config = DecoderTraining
    reads = ("tokenizer", "matching")
    uses = ("losses", "pretrained")

    def build(self) -> DecoderNetworks:
        networks = DecoderNetworks(self.inputs.autoencoder())
        networks.autoencoder.requires_grad_(False)
        decoder = nn.ModuleList(networks.autoencoder.parts().decoder).requires_grad_(True)
        networks.trains["decoder"] = list(decoder.parameters())
        networks.add_losses(self.inputs, self.inputs.discriminator())
        return networks

    def updates(self, networks: DecoderNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        with torch.no_grad():
            z = networks.autoencoder.encode(batch.data, rng).latents
        if self.config.noise > 0:
            z = noised(z, self.config.noise, rng)
        recon = networks.autoencoder.decode(z).sample
        loss, log = reconstruct(networks, self.losses, batch.data, recon, rng)
        yield Update("decoder", loss, log, value=log["reconstruction/total"])
        if networks.discriminator is not None:
            yield discriminate(networks.discriminator, self.losses.adversarial, batch.data, recon, rng)
