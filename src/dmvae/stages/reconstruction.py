"""The reconstruction loss that the stages `tokenizer`, `matching` and `decoder` share, and its networks."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.datasets.mixed import mixed
from dmvae.datasets.pixels import as_input, rounded, to_uint8
from dmvae.evaluation.features import CHUNK
from dmvae.evaluation.images import DatasetImages
from dmvae.evaluation.pairs import psnr
from dmvae.inputs import Inputs
from dmvae.losses import LossConfig
from dmvae.losses.adversarial import adaptive_weight, augment, hinge_discriminator, hinge_generator
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.losses.perceptual import PerceptualLoss
from dmvae.losses.reconstruction import reconstruction_loss
from dmvae.models.base import Tokenizer
from dmvae.models.discriminator import Discriminator
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.training.pictures import COLUMNS
from dmvae.training.stage import N, Networks, T, TrainingStage, Update
from dmvae.training.watching import HELD_OUT


class DecoderNetworks(Networks):
    """The tokenizer, and the networks of its reconstruction loss."""

    autoencoder: Tokenizer
    perceptual: PerceptualLoss | None
    discriminator: Discriminator | None

    def __init__(self, autoencoder: Tokenizer) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.averaged = ("autoencoder",)

    def add_losses(self, inputs: Inputs, losses: LossConfig, discriminator: Discriminator | None) -> None:
        """Add the networks of a stage's losses; a new discriminator where none is given and the losses use one."""
        perceptual = inputs.perceptual()
        self.perceptual = perceptual.requires_grad_(False) if perceptual is not None else None
        self.discriminator = discriminator or inputs.new_discriminator(losses.adversarial)
        if self.discriminator is not None:
            self.discriminator.train().requires_grad_(True)
            self.trains["discriminator"] = [p for p in self.discriminator.parameters() if p.requires_grad]
            if losses.adversarial.learning_rate is not None:
                self.learning_rates["discriminator"] = losses.adversarial.learning_rate


class DecoderStage(TrainingStage[T, N]):
    """A stage with the reconstruction loss."""

    trains_decoder: ClassVar[bool] = True
    shows: ClassVar[str] = "autoencoder"
    measured: ClassVar[str] = "autoencoder"

    @property
    def losses(self) -> LossConfig:
        return self.inputs.sections.losses

    def picture(self, network: nn.Module) -> Tensor:
        """The test images that the report shows first, and their reconstructions below."""
        found = mixed(self.inputs.test_set)
        images = torch.stack([torch.as_tensor(found[i][0]) for i in range(min(COLUMNS, len(found)))])
        return torch.stack([images, self._copies(network, images)])

    def measure(self, network: nn.Module) -> dict[str, Tensor]:
        """PSNR of test images, as the stage `evaluate` has it of all."""
        some = DatasetImages(self.inputs.test_set, HELD_OUT, self.inputs.sections.run.workers)
        found = [psnr(x, self._copies(network, x)) for x in some.batches(range(len(some)), CHUNK)]
        return {"psnr": torch.cat(found).mean()}

    def _copies(self, network: nn.Module, images: Tensor) -> Tensor:
        """Reconstructions of images, both uint8 [n, c, h, w] on the CPU."""
        assert isinstance(network, Tokenizer)
        recon = network.decode(network.encode(as_input(images, self.inputs.device)).latents).sample
        return to_uint8(recon).cpu()


def reconstruct(
    networks: DecoderNetworks, config: LossConfig, x: Tensor, recon: Tensor, rng: Random, adversarial: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """(scalar with the gradient of the reconstruction loss, its terms to log), for images x and recon, both
    [n, c, h, w]. adversarial: whether the adversarial term is in it.

    Each term is differentiated once, with respect to the image. The scalar is the inner product of recon with the
    summed gradient: it has the loss's gradient but not its value, which is `log["reconstruction/total"]`. So the
    adaptive weight needs only weight gradients of the last layer, and perceptual network and discriminator run backward
    once.
    """
    image = recon.detach().float().requires_grad_()
    pixel = reconstruction_loss(x, image, l1=config.l1, l2=config.l2)
    log = {"reconstruction/pixel": pixel}
    total = pixel
    if networks.perceptual is not None:
        log["reconstruction/perceptual"] = perceptual = networks.perceptual(image, x)
        total = total + perceptual
    (gradient,) = torch.autograd.grad(total, image)
    if adversarial and networks.discriminator is not None:
        fake = augment(image, rng, config.adversarial.cutout) if config.adversarial.augment else image
        # eval(): batch norm then uses its running statistics, which are of real and fake images together, as in the
        # discriminator's update. Normalised by their own statistics, fakes would lose what distinguishes them.
        # Frozen, so that nothing is kept for gradients of its weights.
        networks.discriminator.eval().requires_grad_(False)
        gan = hinge_generator(networks.discriminator(fake))
        networks.discriminator.train().requires_grad_(True)
        (gan_gradient,) = torch.autograd.grad(gan, image)
        if config.adversarial.adaptive:
            last = networks.autoencoder.parts().last_layer
            # Averaged over ranks before their norms are taken, so that the weight is that of the whole batch.
            at_last, gan_at_last = (
                distributed.average(torch.autograd.grad(recon, last, g.to(recon.dtype), retain_graph=True)[0])
                for g in (gradient, gan_gradient)
            )
            adaptive = adaptive_weight(at_last, gan_at_last, max=config.adversarial.adaptive_most)
            weight = config.adversarial.weight * adaptive
        else:
            weight = image.new_full((), config.adversarial.weight)
        gradient = gradient + weight * gan_gradient
        total = total + weight * gan
        log |= {"adversarial/generator": gan, "adversarial/weight": weight}
    log["reconstruction/total"] = total
    return (recon.float() * gradient).sum(), {name: value.detach() for name, value in log.items()}


def discriminate(
    discriminator: Discriminator, config: AdversarialConfig, x: Tensor, recon: Tensor, rng: Random
) -> Update:
    """The discriminator's update on images x and reconstructions recon, both [n, c, h, w]: the hinge loss plus
    `consistency` times the mean squared difference of its logits with and without augmentation."""
    images = torch.cat([x, rounded(recon.detach()) if config.rounded else recon.detach().float()])
    seen = torch.cat([augment(part, rng, config.cutout) for part in images.chunk(2)]) if config.augment else images
    answers = discriminator(seen)
    real, fake = answers.chunk(2)
    loss = hinge_discriminator(real, fake)
    log = {"adversarial/real": real.mean(), "adversarial/fake": fake.mean()}
    if config.consistency > 0:
        log["adversarial/consistency"] = change = F.mse_loss(discriminator(images), answers)
        loss = loss + config.consistency * change
    return Update("discriminator", loss, log)
