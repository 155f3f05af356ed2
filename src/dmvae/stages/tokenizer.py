"""Stage `tokenizer`: bottleneck, decoder and discriminator, on an encoder that is frozen or trains along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dmvae.inputs import Inputs
from dmvae.losses.alignment import AlignmentConfig
from dmvae.losses.objective import add_objective, discriminate, new_discriminator, reconstruct
from dmvae.losses.pull import Pull
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.training.contract import Batch, Networks, TrainingConfig, Update

NAME = "tokenizer"
READS = ("encoder",)
USES = ("autoencoder", "losses")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(TrainingConfig):
    """Training of the tokenizer by reconstruction."""

    train_encoder: bool = False
    """Train the encoder too, as in a plain or variational autoencoder."""
    start: Literal["pretrained", "scratch"] | None = None
    """"pretrained": the encoder starts from its self-supervised weights (stage `encoder`) or its public ones;
    "scratch": from random ones. null: from scratch only where it trains and there is no stage `encoder`."""
    kl_weight: float = 0.0
    """Weight of the KL divergence to a standard normal, a mean over latent elements, in nats;
    needs `autoencoder.variational`."""
    alignment: AlignmentConfig | None = None
    """Pointwise alignment of the latents to the frozen encoder, as in VA-VAE; null is off."""
    noise: float = 0.0
    """tau of RAE's noise-augmented decoder (0.8 there): in training it sees latents with noise of |N(0, tau^2)|
    standard deviations, so that it copes with a generator's imperfect ones; 0 is off."""
    ema: float = 0.999
    """Decay of the averaged weights that are saved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")
        if self.start == "scratch" and not self.train_encoder:
            raise ValueError("start: from scratch, a frozen encoder stays random; set train_encoder: true")


def build(config: TokenizerConfig, inputs: Inputs) -> Networks:
    shape = inputs.recipe.autoencoder
    assert shape is not None
    if config.kl_weight > 0 and not shape.variational:
        raise ValueError(
            "tokenizer.kl_weight: a KL term needs a variational bottleneck; set autoencoder.variational: true"
        )
    if config.alignment is not None and shape.latent_channels is None and not config.train_encoder:
        raise ValueError(
            "tokenizer.alignment: a frozen encoder without a bottleneck has nothing that could be aligned; "
            "set train_encoder: true or give autoencoder.latent_channels"
        )
    if config.alignment is not None and "encoder" not in inputs.reads and shape.encoder.starts_random:
        raise ValueError(
            "tokenizer.alignment: its target, the frozen encoder, would be random; give the recipe a stage `encoder`, "
            "or autoencoder.encoder public weights (type: timm)"
        )
    autoencoder = inputs.new_autoencoder()
    autoencoder.encoder.requires_grad_(config.train_encoder).train(config.train_encoder)
    networks = Networks(
        {"autoencoder": autoencoder},
        trains={"tokenizer": [p for p in autoencoder.parameters() if p.requires_grad]},
        averaged=("autoencoder",),
        extra={"dataset": inputs.train_set, "config": config},
    )
    add_objective(networks, inputs.recipe.losses, new_discriminator(inputs.recipe.losses, inputs.recipe.data.channels))
    if config.alignment is not None:
        target = inputs.frozen_encoder()
        width: int = target.channels  # type: ignore[assignment]
        projection = config.alignment.new_projection(autoencoder.config.latent_channels, width)
        networks.modules |= {"target": target, "projection": projection}
        networks.trains["projection"] = list(projection.parameters())
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
    log: dict[str, Any] = {}
    if config.alignment is not None:
        z, alignment = align(config.alignment, networks, batch.data, z, log)
    seen = noised(z, config.noise, rng) if config.noise > 0 else z
    recon = networks.autoencoder.decode(seen).sample
    loss, terms = reconstruct(networks, batch.data, recon, rng, adversarial)
    log |= terms | {"tokenizer/kl": kl}
    log["tokenizer/loss"] = log["reconstruction/total"] + config.kl_weight * kl.detach()
    yield Update("tokenizer", loss + config.kl_weight * kl, log)
    if config.alignment is not None:
        yield Update("projection", alignment)
    if adversarial:
        yield discriminate(networks, batch.data, recon, rng)


def align(config: AlignmentConfig, networks: Networks, x: Tensor, z: Tensor, log: dict) -> tuple[Tensor, Tensor]:
    """Latents z of images x, whose gradient is to have the alignment's added to it, and the alignment loss, through
    which the projection learns: each has an optimizer of its own, so neither weighs in the other's clipping."""
    with torch.no_grad():
        features = networks.target(x).float()
    held = z.detach().float().requires_grad_()
    loss, terms = config.loss(held, networks.projection(held).float(), features)
    (pull,) = torch.autograd.grad(loss, held, retain_graph=True)
    log |= terms
    return Pull.apply(z, pull, config.weight, config.balance == "gradient", log, "alignment"), loss


def noised(z: Tensor, tau: float, rng: Random) -> Tensor:
    """z + s * std * noise, with s = |N(0, tau^2)| per image and std the batch's per channel: [n, C, H, W]
    (RAE, arXiv 2510.11690, whose latents are normalised and so have std 1)."""
    held = z.detach().float()
    moments = torch.stack([held.mean(dim=(0, 2, 3)), held.square().mean(dim=(0, 2, 3))])
    mean, square = distributed.average(moments)
    std = (square - mean.square()).clamp_min(0).sqrt().view(1, -1, 1, 1)
    strength = tau * rng.normal(len(z)).abs().view(-1, 1, 1, 1)
    return z + strength * std * rng.normal(*z.shape)


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) = (mean^2 + var - 1 - logvar) / 2, averaged over elements, nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
