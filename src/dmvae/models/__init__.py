"""The networks: tokenizer, its decoder, velocity network, discriminator."""

from dmvae.models.autoencoder import Autoencoder
from dmvae.models.decoder import Decoder
from dmvae.models.discriminator import PatchGAN
from dmvae.models.dit import LightningDiT, lightningdit

__all__ = ["Autoencoder", "Decoder", "LightningDiT", "PatchGAN", "lightningdit"]
