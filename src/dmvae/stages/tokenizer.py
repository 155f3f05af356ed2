"""Stage `tokenizer`: bottleneck, decoder and discriminator, on an encoder that is frozen or trains with them; or a
`pretrained` tokenizer, trained further in the same ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.encoders import require_features, require_stride
from dmvae.inputs import Inputs
from dmvae.losses.alignment import AlignmentConfig, as_promised
from dmvae.losses.alignment.repa_e import RepaE
from dmvae.losses.pull import Pull
from dmvae.models.base import Distribution, PointDistribution, Tokenizer
from dmvae.ranges import Decay, Range, Weight
from dmvae.registry import require_members
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.stages.reconstruction import DecoderNetworks, DecoderStage, discriminate, reconstruct
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.training.stage import Batch, TrainingConfig, Update, stage


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining(TrainingConfig):
    """Training of the tokenizer by reconstruction."""

    train_encoder: bool = False
    """Train the encoder too, as in a plain or variational autoencoder."""
    train_detail: bool = configs.added(False)
    """Train the network of `autoencoder.detail_width` in this stage already. false: latents depend on the encoder's
    features alone, so that these can be the reference, and `matching` adds the detail."""
    start: Literal["pretrained", "scratch"] | None = None
    """"pretrained": the encoder starts with its self-supervised weights (stage `encoder`) or its public ones;
    "scratch": with random ones. null: "scratch" if it is trained here and there is no stage `encoder`, else
    "pretrained". A `pretrained` tokenizer starts as it is."""
    kl_weight: Weight = 0.0
    """Weight of the KL divergence to a standard normal, a mean over latent elements, in nats;
    needs `autoencoder.variational`."""
    alignment: AlignmentConfig | None = None
    """Alignment of the latents to a frozen encoder, by `type`: pointwise (VA-VAE, the default) or repa_e, through a
    flow model's tokens; null is off."""
    noise: Annotated[float, Range(0, 1000)] = 0.0
    """tau of RAE's noise-augmented decoder (0.8 in RAE): it is trained on latents with noise of |N(0, tau^2)| standard
    deviations, so that it can decode the imperfect latents of a generator; 0 is off. An encoder that trains at the same
    time then keeps fewer directions; `decoder.noise` does not change the encoder."""
    ema: Decay = 0.999
    """Decay of the averaged weights that are saved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "scratch" and not self.train_encoder:
            raise ValueError("start: 'scratch' would leave a frozen encoder random; set train_encoder: true")


class TokenizerNetworks(DecoderNetworks):
    target: nn.Module
    """The frozen encoder that latents are aligned to, where there is an alignment."""
    projection: nn.Module
    """The alignment's network from latents to those features."""


@stage("tokenizer")
class TokenizerStage(DecoderStage[TokenizerTraining, TokenizerNetworks]):
    Config = TokenizerTraining
    reads = ("encoder",)
    uses = ("autoencoder", "losses", "pretrained")

    def build(self) -> TokenizerNetworks:
        config, inputs = self.config, self.inputs
        networks = TokenizerNetworks(self._tokenizer())
        model = networks.autoencoder
        _check(config, inputs, model)
        nn.ModuleList(model.parts().encoder).requires_grad_(config.train_encoder).train(config.train_encoder)
        if isinstance(model, Autoencoder) and model.detail is not None:
            model.detail.requires_grad_(config.train_detail)
        networks.trains["tokenizer"] = [p for p in model.parameters() if p.requires_grad]
        networks.add_losses(inputs, self.losses, None)
        if config.alignment is not None:
            alignment, encoder = config.alignment, inputs.frozen_encoder(config.alignment.target)
            place, data = "tokenizer.alignment.target", inputs.data
            require_stride(encoder, model.stride, alignment.patch, place)
            require_features(encoder, place, size=data.size, channels=data.channels)
            networks.target = encoder
            networks.projection = alignment.projection(inputs.latent_shape, inputs.num_classes, encoder.channels)
            require_members(alignment, networks.projection, ("parameters",), "tokenizer.alignment: ", "projection")
            if trained := [p for p in networks.projection.parameters() if p.requires_grad]:
                networks.trains["projection"] = trained
            if isinstance(alignment, RepaE) and alignment.ema is not None:
                networks.averaged = (*networks.averaged, "projection")
                networks.decays["projection"] = alignment.ema
        return networks

    def _tokenizer(self) -> Tokenizer:
        """The recipe's `pretrained` one, or a new one."""
        config, inputs = self.config, self.inputs
        if inputs.sections.pretrained is not None:
            return inputs.autoencoder()
        start = config.start
        if start is None:
            start = "scratch" if config.train_encoder and "encoder" not in inputs.reads else "pretrained"
        return inputs.new_autoencoder(pretrained=start == "pretrained")

    def updates(self, networks: TokenizerNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        config, adversary = self.config, self.losses.adversarial
        encoded = networks.autoencoder.encode(batch.data)
        kl = torch.zeros((), device=batch.data.device)
        z = encoded.latents
        if networks.autoencoder.has_spread:
            posterior = encoded.latent_dist
            assert not isinstance(posterior, PointDistribution)
            z = drawn(posterior, rng)
            logvar = getattr(posterior, "logvar", None)  # a user's own posterior may have std alone
            kl = divergence(posterior.mean.float(), log_variance(posterior.std) if logvar is None else logvar.float())
        log: dict[str, Tensor | float] = {}
        late: dict[str, Tensor | float] = {}
        if config.alignment is not None:
            z, alignment = align(config.alignment, networks, batch, z, rng, log, late)
        seen = noised(z, config.noise, rng) if config.noise > 0 else z
        recon = networks.autoencoder.decode(seen).sample
        acts = adversary.acts(batch.step, batch.steps)
        loss, terms = reconstruct(networks, self.losses, batch.data, recon, rng, acts)
        log |= terms | {"tokenizer/kl": kl}
        value = terms["reconstruction/total"] + config.kl_weight * kl.detach()
        yield Update("tokenizer", loss + config.kl_weight * kl, log, value, late)
        if "projection" in networks.trains:
            yield Update("projection", alignment)
        if networks.discriminator is not None and adversary.learns(batch.step, batch.steps):
            yield discriminate(networks.discriminator, adversary, batch.data, recon, rng)

    @classmethod
    def problems(cls, config: TokenizerTraining, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        target = None if config.alignment is None else config.alignment.target
        if target is not None and (told := target.absent()):
            yield f"tokenizer.alignment.target: {told}"


def _check(config: TokenizerTraining, inputs: Inputs, model: Tokenizer) -> None:
    """Raise ValueError for settings that do not fit the tokenizer's architecture."""
    source, parts = inputs.sections.pretrained, model.parts()
    if source is not None and config.start is not None:
        raise ValueError(
            f"tokenizer.start: {config.start!r} is of an encoder, and `pretrained` has one; set it to null"
        )
    if isinstance(model, Autoencoder) and model.editor is not None:
        raise ValueError(
            "pretrained: this tokenizer writes images into samples of the reference that it was matched to "
            "(matching.noise); start from the one before, or train its decoder alone"
        )
    if parts.undone:
        raise ValueError(
            "tokenizer: no reconstruction of this `pretrained` depends on what moves its latents, so there is nothing "
            "to learn; leave the stage out, and give the recipe a stage `matching`"
        )
    if config.kl_weight > 0 and not model.has_spread:
        raise ValueError(
            "tokenizer.kl_weight: a KL term needs a variational bottleneck; "
            + (
                "this `pretrained` tokenizer has none: set it to 0"
                if source is not None
                else "set autoencoder.variational: true, or give the weight to those variants alone that have one: "
                "--variants.NAME.tokenizer.kl_weight"
            )
        )
    if config.train_detail and not (isinstance(model, Autoencoder) and model.detail is not None):
        raise ValueError("tokenizer.train_detail: there is nothing to train; give autoencoder.detail_width")
    moves = [part for part in parts.bottleneck if config.train_detail or part is not getattr(model, "detail", None)]
    if config.alignment is not None and not moves and not config.train_encoder:
        detail = " or train_detail: true" if parts.bottleneck else ""
        raise ValueError(
            "tokenizer.alignment: with a frozen encoder and no bottleneck, nothing can move the latents; "
            f"set train_encoder: true{detail}" + ("" if source is not None else " or give autoencoder.latent_channels")
        )
    target = config.alignment and config.alignment.target
    if config.alignment is not None and target is None and source is not None:
        raise ValueError(
            "tokenizer.alignment.target: a `pretrained` tokenizer is aligned to another network's features; give an "
            "encoder with public weights (type: timm or effnet)"
        )
    own = source is None and "encoder" not in inputs.reads and inputs.shape.encoder.starts_random
    if config.alignment is not None and (target.starts_random if target else own):
        raise ValueError(
            "tokenizer.alignment: its target, the frozen encoder, would be random; give tokenizer.alignment.target an "
            "encoder with public weights (type: timm or effnet)"
            + ("" if source is not None else ", or the recipe a stage `encoder`")
        )
    if own and config.start == "pretrained" and config.train_encoder:
        raise ValueError(
            f"tokenizer.start: the encoder, {inputs.shape.encoder.type!r}, has no public weights and the recipe no "
            "stage `encoder` that trains it; add that stage, or set start to scratch"
        )
    if own and not config.train_encoder:
        raise ValueError(
            f"tokenizer.train_encoder: false would leave the encoder, {inputs.shape.encoder.type!r}, at its random "
            "weights; give the recipe a stage `encoder`, set train_encoder: true, or take an autoencoder.encoder with "
            "public weights (type: timm or effnet)"
        )


def align(
    config: AlignmentConfig,
    networks: TokenizerNetworks,
    batch: Batch,
    z: Tensor,
    rng: Random,
    log: dict[str, Tensor | float],
    late: dict[str, Tensor | float],
) -> tuple[Tensor, Tensor]:
    """(z, the loss that trains the projection), for latents z [n, C, H, W] of a batch; the backward pass through the z
    that is returned adds the alignment's gradient. Tokenizer and projection have an optimizer each, so that each
    gradient is clipped by its own norm."""
    with torch.no_grad():
        features = networks.target(batch.data).float()
    held = z.detach().float().requires_grad_()
    found = config.losses(networks.projection, held, batch.labels, features, rng)
    loss, own, terms = as_promised(config.type, found)
    (pull,) = torch.autograd.grad(loss, held, retain_graph=True)
    log |= terms
    return Pull.apply(z, pull, config.weight, config.balance == "gradient", late, "alignment"), own


def noised(z: Tensor, tau: float, rng: Random) -> Tensor:
    """z + s * std * noise, with s = |N(0, tau^2)| per image and std the batch's per channel: [n, C, H, W]
    (RAE, arXiv 2510.11690, whose latents are normalised and so have std 1)."""
    _, variance = distributed.moments(z.detach().float())
    std = variance.sqrt().view(1, -1, 1, 1)
    strength = tau * rng.normal(len(z)).abs().view(-1, 1, 1, 1)
    return z + strength * std * rng.normal(*z.shape)


def log_variance(std: Tensor) -> Tensor:
    """log std^2, float32, finite for std = 0 too."""
    return 2 * std.float().clamp_min(1e-15).log()


def drawn(posterior: Distribution, rng: Random) -> Tensor:
    """Latents [n, C, H, W] from the posterior, mean + std * noise, differentiable in both."""
    return posterior.mean + posterior.std * rng.normal(*posterior.mean.shape)


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) = (mean^2 + exp(logvar) - 1 - logvar) / 2, averaged over all elements: a
    scalar, in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
