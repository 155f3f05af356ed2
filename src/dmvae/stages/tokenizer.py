"""Stage `tokenizer`: bottleneck, decoder and discriminator, on an encoder that is frozen or trains along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.inputs import Inputs
from dmvae.losses.objective import add_objective, discriminate, new_discriminator, reconstruct
from dmvae.training.contract import Batch, Networks, TrainingConfig, Update
from dmvae.training.random import Random

NAME = "tokenizer"
READS = ("encoder",)
USES = ("autoencoder", "losses")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(TrainingConfig):
    """Training of the tokenizer by reconstruction."""

    train_encoder: bool = False
    """Train the encoder too, as in a plain or variational autoencoder."""
    kl_weight: float = 0.0
    """Weight of the KL divergence to a standard normal, a mean over latent elements, in nats;
    needs `autoencoder.variational`."""
    ema: float = 0.999
    """Decay of the averaged weights that are saved."""


def build(config: TokenizerConfig, inputs: Inputs) -> Networks:
    assert inputs.recipe.autoencoder is not None
    if config.kl_weight > 0 and not inputs.recipe.autoencoder.variational:
        raise ValueError(
            "tokenizer.kl_weight: a KL term needs a variational bottleneck; set autoencoder.variational: true"
        )
    autoencoder = inputs.new_autoencoder()
    autoencoder.encoder.requires_grad_(config.train_encoder)
    networks = Networks(
        {"autoencoder": autoencoder},
        trains={"tokenizer": [p for p in autoencoder.parameters() if p.requires_grad]},
        averaged=("autoencoder",),
        extra={"dataset": inputs.train_set, "config": config},
    )
    add_objective(networks, inputs.recipe.losses, new_discriminator(inputs.recipe.losses, inputs.recipe.data.channels))
    return networks


def updates(networks: Networks, batch: Batch, rng: Random) -> Iterator[Update]:
    config: TokenizerConfig = networks.config
    adversarial = networks.discriminator is not None and batch.step >= networks.losses.adversarial.start * batch.steps
    encoded = networks.autoencoder.encode(batch.data)
    kl = torch.zeros((), device=batch.data.device)
    z = encoded.latents
    if networks.autoencoder.config.variational:
        posterior = encoded.latent_dist
        z = posterior.mean + posterior.std * rng.normal(*posterior.mean.shape)
        kl = divergence(posterior.mean.float(), posterior.logvar.float())
    recon = networks.autoencoder.decode(z).sample
    loss, log = reconstruct(networks, batch.data, recon, rng, adversarial)
    log["tokenizer/loss"] = log["reconstruction/total"] + config.kl_weight * kl.detach()
    yield Update("tokenizer", loss + config.kl_weight * kl, log | {"tokenizer/kl": kl})
    if adversarial:
        yield discriminate(networks, batch.data, recon, rng)


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) = (mean^2 + var - 1 - logvar) / 2, averaged over elements, nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
