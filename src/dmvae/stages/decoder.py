"""Stage `decoder`: decoder and discriminator on the final latents; encoder and bottleneck stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dmvae.inputs import Inputs
from dmvae.losses.objective import add_objective, discriminate, new_discriminator, reconstruct
from dmvae.runtime.random import Random
from dmvae.stages.tokenizer import noised
from dmvae.training.contract import Batch, Networks, TrainingConfig, Update

NAME = "decoder"
READS = ("tokenizer", "matching")
USES = ("losses",)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TrainingConfig):
    """Training of the decoder on frozen latents."""

    noise: float = 0.0
    """As `tokenizer.noise`: standard deviations of the noise on the latents that the decoder sees in training."""
    ema: float = 0.999
    """Decay of the averaged weights that are saved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")


def build(config: DecoderConfig, inputs: Inputs) -> Networks:
    autoencoder = inputs.autoencoder()
    autoencoder.requires_grad_(False)
    autoencoder.decoder.requires_grad_(True)
    networks = Networks(
        {"autoencoder": autoencoder},
        trains={"decoder": list(autoencoder.decoder.parameters())},
        averaged=("autoencoder",),
        extra={"dataset": inputs.train_set, "config": config},
    )
    losses = inputs.recipe.losses
    discriminator = inputs.discriminator() or new_discriminator(losses, inputs.recipe.data.channels)
    add_objective(networks, losses, discriminator)
    return networks


def updates(networks: Networks, batch: Batch, rng: Random) -> Iterator[Update]:
    with torch.no_grad():
        z = networks.autoencoder.encode(batch.data).latents
    if networks.config.noise > 0:
        z = noised(z, networks.config.noise, rng)
    recon = networks.autoencoder.decode(z).sample
    loss, log = reconstruct(networks, batch.data, recon, rng)
    yield Update("decoder", loss, log | {"decoder/loss": log["reconstruction/total"]})
    if networks.discriminator is not None:
        yield discriminate(networks, batch.data, recon, rng)
