"""Stage `decoder`: decoder and discriminator on the final latents; encoder and bottleneck stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import nn

from dmvae import config as configs
from dmvae.losses import LossConfig
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.ranges import Decay, Range
from dmvae.runtime.random import Random
from dmvae.stages.reconstruction import DecoderNetworks, DecoderStage, discriminate, reconstruct
from dmvae.stages.tokenizer import noised
from dmvae.training.stage import Batch, TrainingConfig, Update, stage


@dataclass(frozen=True, kw_only=True)
class DecoderTraining(TrainingConfig):
    """Training of the decoder on frozen latents."""

    noise: Annotated[float, Range(0, 1000)] = 0.0
    """As `tokenizer.noise`: tau of the noise on the latents that the decoder is trained on; 0 is off."""
    adversarial: AdversarialConfig | None = configs.added(None)
    """A new adversary for this stage, by `type`; its `start` and `learn_from` are shares of this stage. null: that of
    `losses`, as the stages before left it."""
    ema: Decay = 0.999
    """Decay of the averaged weights that are saved."""


@stage("decoder")
class DecoderTrainingStage(DecoderStage[DecoderTraining, DecoderNetworks]):
    Config = DecoderTraining
    reads = ("tokenizer", "matching")
    uses = ("losses", "pretrained", "latents.drawn")
    keeps_latents = True

    @property
    def losses(self) -> LossConfig:
        own = self.config.adversarial
        return super().losses if own is None else replace(super().losses, adversarial=own)

    def build(self) -> DecoderNetworks:
        networks = DecoderNetworks(self.inputs.autoencoder())
        networks.autoencoder.requires_grad_(False)
        if self.inputs.sections.latents.drawn:  # so that it decodes what generators learn
            networks.autoencoder.drawn = True
        decoder = nn.ModuleList(networks.autoencoder.parts().decoder).requires_grad_(True)
        networks.trains["decoder"] = list(decoder.parameters())
        own = self.config.adversarial
        before = self.inputs.discriminator() if own is None else None
        networks.add_losses(self.inputs, self.losses, before)
        return networks

    def updates(self, networks: DecoderNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        with torch.no_grad():
            z = networks.autoencoder.encode(batch.data, rng).latents
        if self.config.noise > 0:
            z = noised(z, self.config.noise, rng)
        recon = networks.autoencoder.decode(z).sample
        own = self.config.adversarial
        acts = own is None or own.acts(batch.step, batch.steps)
        loss, log = reconstruct(networks, self.losses, batch.data, recon, rng, acts)
        yield Update("decoder", loss, log, value=log["reconstruction/total"])
        if networks.discriminator is not None and (own is None or own.learns(batch.step, batch.steps)):
            yield discriminate(networks.discriminator, self.losses.adversarial, batch.data, recon, rng)
