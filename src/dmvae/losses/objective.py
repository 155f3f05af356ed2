"""The reconstruction objective that the tokenizer, matching and decoder stages share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmvae.losses import LossConfig
from dmvae.losses.adversarial import adaptive_weight, augment, consistency, hinge_discriminator, hinge_generator
from dmvae.losses.reconstruction import reconstruction_loss
from dmvae.models.discriminator import PatchGAN
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.training.contract import Networks, Update


def new_discriminator(config: LossConfig, channels: int) -> PatchGAN | None:
    """A fresh discriminator, or None when the adversarial weight is 0."""
    adversary = config.adversarial
    if adversary.weight == 0:
        return None
    return PatchGAN(in_channels=channels, width=adversary.width, layers=adversary.layers, norm=adversary.norm)


def add_objective(networks: Networks, config: LossConfig, discriminator: nn.Module | None) -> None:
    """Give a stage's networks what `reconstruct` and `discriminate` use."""
    perceptual = config.perceptual.build() if config.perceptual is not None else None
    networks.extra["losses"] = config
    networks.extra["discriminator"] = None
    networks.extra["perceptual"] = None
    if perceptual is not None:
        networks.modules["perceptual"] = perceptual.requires_grad_(False)
        del networks.extra["perceptual"]
    if discriminator is not None:
        networks.modules["discriminator"] = discriminator
        networks.trains["discriminator"] = list(discriminator.parameters())
        del networks.extra["discriminator"]
        if config.adversarial.learning_rate is not None:
            networks.learning_rates["discriminator"] = config.adversarial.learning_rate


def reconstruct(
    networks: Networks, x: Tensor, recon: Tensor, rng: Random, adversarial: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a reconstruction [n, c, h, w] of x, and its terms to log.

    The terms are differentiated at the image, once each; the scalar returned is the product of the
    reconstruction with the summed gradient, so that its own gradient is the objective's (its value is
    not: that is `log["reconstruction/total"]`). The adaptive weight then needs only the last
    convolution's weight gradients, and no network below the image runs backward twice.
    """
    config: LossConfig = networks.losses
    image = recon.detach().float().requires_grad_()
    pixel = reconstruction_loss(x, image, l1=config.l1, l2=config.l2)
    log = {"reconstruction/pixel": pixel}
    total = pixel
    if networks.perceptual is not None:
        log["reconstruction/perceptual"] = perceptual = networks.perceptual(image, x)
        total = total + perceptual
    (gradient,) = torch.autograd.grad(total, image)
    if adversarial and networks.discriminator is not None:
        fake = augment(image, rng) if config.adversarial.augment else image
        # Batch norm by running statistics, those of real and fake images together, as in the discriminator's own turn:
        # fakes normalised among themselves would lose what tells them apart.
        networks.discriminator.eval()
        gan = hinge_generator(networks.discriminator(fake))
        networks.discriminator.train()
        (gan_gradient,) = torch.autograd.grad(gan, image)
        last = networks.autoencoder.decoder.conv_out.weight
        # Averaged over ranks before their norms are taken: the weight is the whole batch's on any number of them.
        at_last, gan_at_last = (
            distributed.average(torch.autograd.grad(recon, last, g.to(recon.dtype), retain_graph=True)[0])
            for g in (gradient, gan_gradient)
        )
        weight = config.adversarial.weight * adaptive_weight(at_last, gan_at_last)
        gradient = gradient + weight * gan_gradient
        total = total + weight * gan
        log |= {"adversarial/generator": gan, "adversarial/weight": weight}
    log["reconstruction/total"] = total
    return (recon.float() * gradient).sum(), {name: value.detach() for name, value in log.items()}


def discriminate(networks: Networks, x: Tensor, recon: Tensor, rng: Random) -> Update:
    """The discriminator's turn on images x and their reconstructions, both [n, c, h, w]."""
    config = networks.losses.adversarial
    images = torch.cat([x, recon.detach().float()])
    seen = torch.cat([augment(part, rng) for part in images.chunk(2)]) if config.augment else images
    answers = networks.discriminator(seen)
    real, fake = answers.chunk(2)
    loss = hinge_discriminator(real, fake)
    log = {"adversarial/real": real.mean(), "adversarial/fake": fake.mean()}
    if config.consistency > 0:
        log["adversarial/consistency"] = change = consistency(networks.discriminator(images), answers)
        loss = loss + config.consistency * change
    return Update("discriminator", loss, log)
